//! SentencePiece's BPE (Llama 2's and Mistral's kind) out of a GGUF file.
//!
//! The file has a score per piece and no merges. SentencePiece joins, again and again, the
//! neighbours that make the piece of the highest score; that is the same as merging by a list of
//! all ways to make a piece of two others, sorted by score, which is how Hugging Face converts such
//! vocabularies.

use std::cmp::Ordering;

use tokenizers::decoders::byte_fallback::ByteFallback;
use tokenizers::decoders::fuse::Fuse;
use tokenizers::decoders::sequence::Sequence as Decoders;
use tokenizers::decoders::strip::Strip;
use tokenizers::models::bpe::BPE;
use tokenizers::normalizers::{Prepend, Replace, Sequence as Normalizers};
use tokenizers::{DecoderWrapper, NormalizerWrapper, Tokenizer};

use super::gguf::{self, GgufVocabulary, TokenKind};
use crate::model::error::ModelError;
use crate::model::gguf::GgufFile;

const SCORES_KEY: &str = "tokenizer.ggml.scores";
/// A blank, as the pieces write it.
const BLANK: &str = "▁";
/// SentencePiece's own default limit is 16 characters; a limit keeps a hostile vocabulary from
/// asking for the square of its size.
const LONGEST_PIECE: usize = 512;

/// Builds the tokenizer that the metadata describe, without its special tokens.
pub(super) fn build(
    header: &GgufFile,
    vocabulary: &GgufVocabulary,
    unknown: u32,
) -> Result<Tokenizer, ModelError> {
    let path = header.path();
    let scores = header
        .numbers(SCORES_KEY)?
        .ok_or_else(|| ModelError::field(path, SCORES_KEY, "is missing"))?;
    if scores.len() != vocabulary.tokens.len() {
        let problem = format!("has {} scores for {} tokens", scores.len(), vocabulary.tokens.len());
        return Err(ModelError::field(path, SCORES_KEY, problem));
    }
    let mut builder = BPE::builder()
        .vocab_and_merges(vocabulary.ids.clone(), merges(header, vocabulary, &scores)?)
        .fuse_unk(true)
        .byte_fallback(true);
    if let Some(token) = vocabulary.tokens.get(unknown as usize) {
        builder = builder.unk_token(token.clone());
    }
    let refused = |error| gguf::refused(path, &error);
    let mut tokenizer = Tokenizer::new(builder.build().map_err(refused)?);

    let add_space = header.bool("tokenizer.ggml.add_space_prefix")?.unwrap_or(true);
    let mut normalizers: Vec<NormalizerWrapper> = Vec::new();
    let mut decoders: Vec<DecoderWrapper> = vec![
        Replace::new(BLANK, " ").map_err(refused)?.into(),
        ByteFallback::default().into(),
        Fuse::default().into(),
    ];
    if add_space {
        normalizers.push(Prepend::new(BLANK.to_owned()).into());
        decoders.push(Strip::new(' ', 1, 0).into());
    }
    normalizers.push(Replace::new(" ", BLANK).map_err(refused)?.into());
    tokenizer.with_normalizer(Some(Normalizers::new(normalizers))).map_err(refused)?;
    tokenizer.with_decoder(Some(Decoders::new(decoders)));
    Ok(tokenizer)
}

/// All ways to make a piece of two others: the highest score first, then in the order of the
/// pieces' ids.
fn merges(
    header: &GgufFile,
    vocabulary: &GgufVocabulary,
    scores: &[f64],
) -> Result<Vec<(String, String)>, ModelError> {
    struct Merge<'a> {
        score: f64,
        ids: [u32; 3],
        parts: (&'a str, &'a str),
    }

    let mut found = Vec::new();
    for (id, piece) in (0..).zip(&vocabulary.tokens) {
        if vocabulary.kind(id) != TokenKind::Normal {
            continue;
        }
        if piece.chars().nth(LONGEST_PIECE).is_some() {
            let problem = format!("token {id} is longer than {LONGEST_PIECE} characters");
            return Err(ModelError::field(header.path(), gguf::TOKENS_KEY, problem));
        }
        for (at, _) in piece.char_indices().skip(1) {
            let parts = piece.split_at(at);
            let part_ids = (vocabulary.ids.get(parts.0), vocabulary.ids.get(parts.1));
            if let (Some(&left), Some(&right)) = part_ids {
                found.push(Merge { score: scores[id as usize], ids: [id, left, right], parts });
            }
        }
    }
    found.sort_by(|a, b| -> Ordering {
        b.score.total_cmp(&a.score).then_with(|| a.ids.cmp(&b.ids))
    });
    Ok(found.iter().map(|merge| (merge.parts.0.to_owned(), merge.parts.1.to_owned())).collect())
}
