//! Updates on their way in: announced, taken chunk by chunk, committed.

use std::sync::{Arc, Mutex};

use fleetune_core::client::TrainingReport;
use fleetune_core::protocol::{
    BlobId, ChunkRange, ChunkSet, CommitStatus, DeviceId, Response, UploadKey, UploadOffer,
};
use fleetune_core::update::Codec;

use super::federation::Federation;
use super::{Coordinator, RequestError};
use crate::fault;
use crate::round::Verdict;
use crate::store::{MemberRow, Outcome, StoreError, Upload, UploadError, lock_upload};

impl Coordinator {
    /// An update is announced: which chunks the server lacks, or what became of it before.
    ///
    /// # Errors
    /// When the device has no such assignment, or the update cannot be what it should be.
    pub fn begin_upload(
        &self,
        device: DeviceId,
        offer: UploadOffer,
    ) -> Result<Response, RequestError> {
        let (federation, member) = self.part(device, &offer.key)?;
        if let Some(answer) = settled(&member, offer.key.blob) {
            return Ok(Response::Committed(answer));
        }
        let limit = federation.largest_update().min(self.limits.upload_mib << 20);
        if offer.size > limit {
            return Err(RequestError::TooLarge { size: offer.size, limit });
        }
        if !Codec::known_ids().any(|known| known == offer.codec) {
            return Err(RequestError::Malformed(format!("there is no codec {}", offer.codec)));
        }
        serde_json::from_str::<TrainingReport>(&offer.report).map_err(|error| {
            RequestError::Malformed(format!("the report cannot be read: {error}"))
        })?;
        // Too late already: the bytes need not travel.
        let verdict = federation.lock().state.judge(member.epoch, member.round);
        if verdict == Verdict::Late {
            let answer = self.settle(&federation, member, &offer, Outcome::Late)?;
            return Ok(Response::Committed(answer));
        }
        let upload = self.incoming.begin(device, offer)?;
        let missing = lock_upload(&upload).missing();
        Ok(Response::Missing(missing))
    }

    /// The upload that a chunk belongs to.
    ///
    /// # Errors
    /// When the device announced no such update.
    pub fn upload(
        &self,
        device: DeviceId,
        blob: BlobId,
    ) -> Result<Arc<Mutex<Upload>>, RequestError> {
        self.incoming.find(device, blob)?.ok_or(RequestError::Unknown("announced update"))
    }

    /// Takes in a chunk of an announced update.
    ///
    /// # Errors
    /// When there is no such chunk or the disk does not take it.
    pub fn store_chunk(
        &self,
        upload: &Mutex<Upload>,
        index: u32,
        bytes: &[u8],
    ) -> Result<Response, RequestError> {
        let stored = lock_upload(upload).store(index, bytes)?;
        fault::point("after-chunk-stored");
        self.metrics.received(bytes.len());
        Ok(if stored { Response::Stored } else { Response::Corrupt })
    }

    /// Memory that [`Coordinator::commit`] takes for an update, bytes.
    pub fn memory_of_commit(&self, key: &UploadKey) -> u64 {
        // The file, its parts, a part decompressed, and its values; none is longer than an update.
        self.federation(&key.federation).map_or(0, |federation| 4 * federation.largest_update())
    }

    /// An update is handed in. When this says that it counts, it is on the disk for good. The answer
    /// is final: whoever asks again, after whatever, gets the same.
    ///
    /// # Errors
    /// When the device has no such assignment, or the store fails; it may then ask again.
    pub fn commit(&self, device: DeviceId, key: &UploadKey) -> Result<Response, RequestError> {
        let (_, member) = self.part(device, key)?;
        if let Some(answer) = settled(&member, key.blob) {
            return Ok(Response::Committed(answer));
        }
        let Some(upload) = self.incoming.find(device, key.blob)? else {
            // It has to be announced (again). How many chunks it has only the device knows.
            let all = ChunkRange { first: 0, count: u32::MAX };
            return Ok(Response::Missing(ChunkSet { ranges: vec![all] }));
        };
        // One commit of a device at a time; who comes second finds what the first one settled.
        let upload = lock_upload(&upload);
        let (federation, member) = self.part(device, key)?;
        if let Some(answer) = settled(&member, key.blob) {
            return Ok(Response::Committed(answer));
        }
        let offer = upload.offer().clone();
        if !upload.missing().is_empty() {
            return Ok(Response::Missing(upload.missing()));
        }
        let verdict = federation.lock().state.judge(member.epoch, member.round);
        if verdict == Verdict::Late {
            let answer = self.settle(&federation, member, &offer, Outcome::Late)?;
            return Ok(Response::Committed(answer));
        }
        let objection = self.objection(&federation, &member, &offer, &read(&upload)?);
        if let Some(reason) = objection {
            let answer = self.settle(&federation, member, &offer, Outcome::Refused(reason))?;
            return Ok(Response::Committed(answer));
        }
        self.store.blobs().adopt(&upload.data(), key.blob)?;
        fault::point("after-update-kept");
        let answer = self.count(&federation, member, &offer)?;
        drop(upload);
        fault::point("before-commit-ack");
        Ok(Response::Committed(answer))
    }

    /// Why an update does not count, if so.
    fn objection(
        &self,
        federation: &Federation,
        member: &MemberRow,
        offer: &UploadOffer,
        bytes: &[u8],
    ) -> Option<String> {
        if BlobId::of(bytes) != offer.key.blob {
            return Some("its chunks are not those of the update that was announced".into());
        }
        let most = federation.config.rounds.max_rows;
        if offer.rows == 0 || offer.rows > most {
            return Some(format!(
                "it was trained on {} rows, 1 to {most} are believed",
                offer.rows
            ));
        }
        let start = federation.lock().starts.get(&member.round).cloned()?;
        federation.examine(bytes, &start).err()
    }

    /// Decides, with the round held still, where an update counts, and records it.
    fn count(
        &self,
        federation: &Federation,
        member: MemberRow,
        offer: &UploadOffer,
    ) -> Result<CommitStatus, RequestError> {
        let mut current = federation.lock();
        if let Some(answer) = self.settled_meanwhile(&member, offer.key.blob)? {
            return Ok(answer);
        }
        let Verdict::Counts { round } = current.state.judge(member.epoch, member.round) else {
            drop(current);
            return self.settle(federation, member, offer, Outcome::Late);
        };
        let outcome = if round == member.round { Outcome::Accepted } else { Outcome::Folded };
        let row = self.record(member, offer, outcome, Some(round))?;
        current.state.reported(row.device, row.attempt, round);
        federation.step(&mut current, &self.store, self.clock.now())?;
        drop(current);
        self.finish_upload(federation, &row)
    }

    /// Records an update that does not count.
    fn settle(
        &self,
        federation: &Federation,
        member: MemberRow,
        offer: &UploadOffer,
        outcome: Outcome,
    ) -> Result<CommitStatus, RequestError> {
        let mut current = federation.lock();
        if let Some(answer) = self.settled_meanwhile(&member, offer.key.blob)? {
            return Ok(answer);
        }
        let row = self.record(member, offer, outcome, None)?;
        if (current.state.epoch(), current.state.round()) == (row.epoch, row.round) {
            current.state.gone(row.device);
            federation.step(&mut current, &self.store, self.clock.now())?;
        }
        drop(current);
        self.finish_upload(federation, &row)
    }

    /// What another connection of the device has settled in this moment: two may show one identity.
    fn settled_meanwhile(
        &self,
        member: &MemberRow,
        blob: BlobId,
    ) -> Result<Option<CommitStatus>, RequestError> {
        let member = self.store.member(member.attempt)?;
        Ok(member.and_then(|member| settled(&member, blob)))
    }

    fn record(
        &self,
        member: MemberRow,
        offer: &UploadOffer,
        outcome: Outcome,
        counts_in: Option<u32>,
    ) -> Result<MemberRow, RequestError> {
        let row = MemberRow {
            outcome,
            blob: Some(offer.key.blob),
            samples: offer.rows,
            report: Some(offer.report.clone()),
            counts_in,
            ..member
        };
        self.store.settle(&row, self.clock.now())?;
        Ok(row)
    }

    /// Tells the log, and makes room.
    fn finish_upload(
        &self,
        federation: &Federation,
        row: &MemberRow,
    ) -> Result<CommitStatus, RequestError> {
        self.metrics.settled(federation.name(), &row.outcome);
        let (device, round) = (row.device.to_string(), row.round);
        match &row.outcome {
            Outcome::Refused(reason) => {
                tracing::warn!(
                    federation = federation.name(),
                    round,
                    device,
                    reason,
                    "update refused"
                );
            }
            outcome => {
                tracing::info!(
                    federation = federation.name(),
                    round,
                    device,
                    ?outcome,
                    "update in"
                );
            }
        }
        // What stays is untidy and no more: the next upload of the device replaces it.
        if let Err(error) = self.incoming.discard(row.device) {
            tracing::warn!("{error}");
        }
        row.outcome.answer().ok_or_else(|| RequestError::Internal("nothing was settled".into()))
    }

    /// The assignment that an update answers, which must be this device's.
    fn part(
        &self,
        device: DeviceId,
        key: &UploadKey,
    ) -> Result<(Arc<Federation>, MemberRow), RequestError> {
        let unknown = || RequestError::Unknown("assignment");
        let member = self.store.member(key.attempt)?.ok_or_else(unknown)?;
        let same = member.device == device
            && member.federation == key.federation
            && member.round == key.round;
        let federation = self.federation(&key.federation).filter(|_| same).ok_or_else(unknown)?;
        Ok((federation, member))
    }
}

fn read(upload: &Upload) -> Result<Vec<u8>, UploadError> {
    let path = upload.data();
    let bytes = std::fs::read(&path);
    bytes.map_err(|source| StoreError::Io { action: "read", path, source }.into())
}

/// What a device is told whose part in the round is settled.
fn settled(member: &MemberRow, blob: BlobId) -> Option<CommitStatus> {
    let answer = member.outcome.answer()?;
    if member.blob.is_none_or(|settled| settled == blob) {
        return Some(answer);
    }
    // A device has one update in a round: this is a second one, or another device with its identity.
    let reason = "another update of this device was handed in for this round".into();
    Some(CommitStatus::Refused { reason })
}
