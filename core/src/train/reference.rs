//! The frozen reference of preference training, whose log-probabilities are computed once per pair
//! and kept.
//!
//! The reference of preference training never changes, so a device that stays in a federation
//! computes it once and finds it again in every later round. The key covers all that the numbers
//! depend on: the base model and how its products round, the reference adapter, and the pair's tokens,
//! which include template and sequence length.
//!
//! On disk the cache is a header and fixed-size records with a checksum each, appended as they are
//! computed. A record that was cut off by a kill or damaged is dropped; so is a whole file of another
//! version, since it can be computed again.

use std::collections::HashMap;
use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::path::Path;

use sha2::{Digest, Sha256};

use super::{PairEvaluation, PairLogProbs, PassLimits, evaluate_pairs};
use crate::adapter::Adapter;
use crate::data::TokenizedPair;
use crate::kernels::Precision;
use crate::model::{CancelToken, Decoder, EngineError};

const HEADER: &[u8; 8] = b"FTREF\0\0\x02";
const KEY: usize = 32;
const CONTENT: usize = KEY + 2 * size_of::<f64>();
const CHECKSUM: usize = 8;
const RECORD: usize = CONTENT + CHECKSUM;

/// The base model, or a frozen adapter on it, with the log-probabilities known of it: in memory and,
/// if opened with a file, on disk.
#[derive(Debug)]
pub struct Reference {
    adapter: Option<Adapter>,
    /// Hash of base model and adapter.
    hash: [u8; KEY],
    known: HashMap<[u8; KEY], PairLogProbs>,
    file: Option<File>,
}

/// Why reference log-probabilities cannot be had.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ReferenceError {
    /// The file cannot be read or written.
    #[error("the reference's log-probabilities: {0}; remove the file to compute them anew")]
    File(#[from] io::Error),
    /// The engine failed or was cancelled.
    #[error(transparent)]
    Engine(#[from] EngineError),
}

impl Reference {
    /// The base model with hash `model_hash` itself, or a frozen `adapter` on it, computed at
    /// `precision`.
    pub fn new(model_hash: &str, precision: Precision, adapter: Option<Adapter>) -> Self {
        let mut hasher = Sha256::new();
        hasher.update(model_hash);
        hasher.update(format!("{precision:?}"));
        if let Some(adapter) = &adapter {
            hasher.update(adapter.config.scale().to_le_bytes());
            for parameter in adapter.parameters.iter() {
                hasher.update(&parameter.name);
                parameter.values.iter().for_each(|value| hasher.update(value.to_le_bytes()));
            }
        }
        Self { adapter, hash: hasher.finalize().into(), known: HashMap::new(), file: None }
    }

    /// The same reference, its log-probabilities kept in the file at `path`; those it holds already
    /// are known from now on.
    ///
    /// # Errors
    /// When the file cannot be read or written.
    pub fn kept_in(mut self, path: &Path) -> io::Result<Self> {
        let mut file =
            OpenOptions::new().read(true).append(true).create(true).truncate(false).open(path)?;
        let mut header = [0; HEADER.len()];
        let found = file.metadata()?.len();
        if found >= HEADER.len() as u64 {
            file.read_exact(&mut header)?;
        }
        if header != *HEADER {
            file.set_len(0)?;
            file.write_all(HEADER)?;
        } else {
            let records = (found - HEADER.len() as u64) / RECORD as u64;
            let mut reader = io::BufReader::new(&file);
            let mut record = [0; RECORD];
            for _ in 0..records {
                reader.read_exact(&mut record)?;
                // A damaged record is as good as none.
                self.known.extend(decode(&record));
            }
            file.set_len(HEADER.len() as u64 + records * RECORD as u64)?;
        }
        self.file = Some(file);
        Ok(self)
    }

    /// Log-probabilities of both answers of each pair; those not known yet are computed, with at most
    /// `score_rows` rows of logits at once, and kept.
    ///
    /// # Errors
    /// When the engine fails or is cancelled, or the file cannot be written.
    pub fn log_probs(
        &mut self,
        decoder: &Decoder,
        pairs: &[TokenizedPair],
        score_rows: usize,
        cancel: &CancelToken,
    ) -> Result<Vec<PairLogProbs>, ReferenceError> {
        let mut found = Vec::with_capacity(pairs.len());
        for pair in pairs {
            let key = self.key(pair);
            if let Some(&known) = self.known.get(&key) {
                found.push(known);
                continue;
            }
            // Each pair in a pass of its own: its numbers must not depend on which others are
            // unknown, or a run that was resumed would differ in the last bit.
            let (adapter, pair) = (self.adapter.as_ref(), std::slice::from_ref(pair));
            let limits = PassLimits { max_pass_tokens: pair[0].pass_rows(), score_rows };
            for PairEvaluation { log_probs, .. } in
                evaluate_pairs(decoder, adapter, pair, limits, cancel)?
            {
                found.push(log_probs);
                self.known.insert(key, log_probs);
                if let Some(file) = &mut self.file {
                    file.write_all(&encode(&key, log_probs))?;
                }
            }
        }
        Ok(found)
    }

    /// Pairs whose log-probabilities are known.
    pub fn len(&self) -> usize {
        self.known.len()
    }

    /// Whether none are known.
    pub fn is_empty(&self) -> bool {
        self.known.is_empty()
    }

    fn key(&self, pair: &TokenizedPair) -> [u8; KEY] {
        let mut hasher = Sha256::new();
        hasher.update(self.hash);
        for ids in [&pair.prompt, &pair.chosen, &pair.rejected] {
            hasher.update((ids.len() as u64).to_le_bytes());
            ids.iter().for_each(|id| hasher.update(id.to_le_bytes()));
        }
        hasher.finalize().into()
    }
}

fn encode(key: &[u8; KEY], log_probs: PairLogProbs) -> [u8; RECORD] {
    let mut record = [0; RECORD];
    record[..KEY].copy_from_slice(key);
    record[KEY..KEY + 8].copy_from_slice(&log_probs.chosen.to_le_bytes());
    record[KEY + 8..CONTENT].copy_from_slice(&log_probs.rejected.to_le_bytes());
    let checksum = Sha256::digest(&record[..CONTENT]);
    record[CONTENT..].copy_from_slice(&checksum[..CHECKSUM]);
    record
}

/// What a record says; `None` where it is damaged.
fn decode(record: &[u8; RECORD]) -> Option<([u8; KEY], PairLogProbs)> {
    if Sha256::digest(&record[..CONTENT])[..CHECKSUM] != record[CONTENT..] {
        return None;
    }
    let number = |at: usize| {
        let mut bytes = [0; 8];
        bytes.copy_from_slice(&record[at..at + 8]);
        f64::from_le_bytes(bytes)
    };
    let mut key = [0; KEY];
    key.copy_from_slice(&record[..KEY]);
    Some((key, PairLogProbs { chosen: number(KEY), rejected: number(KEY + 8) }))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reference(model: &str) -> Reference {
        Reference::new(model, Precision::F32, None)
    }

    fn known(cache: &Reference) -> Vec<[u8; KEY]> {
        let mut keys: Vec<_> = cache.known.keys().copied().collect();
        keys.sort_unstable();
        keys
    }

    #[test]
    fn a_file_cut_off_in_a_record_keeps_the_records_before_it() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("reference");
        let mut cache = reference("model").kept_in(&path).unwrap();
        for i in 0..3u8 {
            let record = encode(&[i; KEY], PairLogProbs { chosen: -1.5, rejected: f64::from(i) });
            cache.file.as_mut().unwrap().write_all(&record).unwrap();
        }
        drop(cache);
        let whole = std::fs::read(&path).unwrap();
        std::fs::write(&path, &whole[..whole.len() - 5]).unwrap();
        let cache = reference("model").kept_in(&path).unwrap();
        assert_eq!(known(&cache), [[0; KEY], [1; KEY]]);
        assert_eq!(cache.known[&[1; KEY]], PairLogProbs { chosen: -1.5, rejected: 1.0 });
        // And what is appended next is found again.
        drop(cache);
        assert_eq!(std::fs::metadata(&path).unwrap().len(), (8 + 2 * RECORD) as u64);
    }

    #[test]
    fn a_damaged_record_is_computed_again() {
        let record = encode(&[1; KEY], PairLogProbs { chosen: -1.5, rejected: -2.5 });
        assert!(decode(&record).is_some());
        for at in 0..RECORD {
            let mut damaged = record;
            damaged[at] ^= 4;
            assert_eq!(decode(&damaged), None, "byte {at}");
        }
    }

    #[test]
    fn a_file_of_another_version_is_started_anew() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("reference");
        std::fs::write(&path, b"something else entirely").unwrap();
        assert!(reference("model").kept_in(&path).unwrap().is_empty());
        assert_eq!(std::fs::read(&path).unwrap(), HEADER);
    }

    #[test]
    fn the_key_tells_models_and_splits_of_a_text_apart() {
        let pair = |prompt: &[u32], chosen: &[u32]| TokenizedPair {
            prompt: prompt.to_vec(),
            chosen: chosen.to_vec(),
            rejected: vec![9],
        };
        let cache = reference("model");
        let other = reference("another");
        let rounded = Reference::new("model", Precision::Bf16, None);
        assert_ne!(cache.key(&pair(&[1], &[2])), rounded.key(&pair(&[1], &[2])));
        assert_ne!(cache.key(&pair(&[1, 2], &[3])), cache.key(&pair(&[1], &[2, 3])));
        assert_ne!(cache.key(&pair(&[1], &[2])), other.key(&pair(&[1], &[2])));
    }
}
