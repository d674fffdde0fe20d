//! A device in a federation: the driver of its [`Session`], with a clock, a disk and a network.
//!
//! Calls block, so that an app runs a participant on a thread of its own; a small runtime behind it
//! keeps the connection alive meanwhile. Everything that must outlive the process is in the
//! [`DeviceFolder`] before the next step is taken, so a participant may be killed at any moment and
//! made anew.

use std::future::Future;
use std::io;
use std::ops::ControlFlow;
use std::path::Path;
use std::time::{Duration, Instant, SystemTime};

use tokio::runtime::Runtime;

use super::blob_file::BlobFile;
use super::folder::{DeviceFolder, FolderError};
use super::identity::{DeviceKey, Identity, IdentityError, KeyStore};
use super::instructions::Instructions;
use super::link::{Link, LinkError, NetworkWatch};
use super::messages::Download;
use super::round::{RoundOutcome, TrainingReport};
use super::route::{Route, version_to_keep};
use super::tls::{self, TlsError};
use super::trainer::{LocalTrainer, TrainerError, Work};
use crate::model::CancelToken;
use crate::protocol::{
    Action, Backoff, Blame, Blob, BlobId, CheckIn, ChunkRange, ChunkSet, CommitStatus, Ending,
    EnrolRequest, Event, FinalAdapter, JoinCode, MANIFEST_PAGE, Manifest, Refusal, Request,
    Response, RoundAssignment, Session, UploadKey, UploadOffer, hash,
};
use crate::train::StepReport;
use crate::update::Header;

/// Bytes of a round's adapter, or what leads to it, and control variate at most: they are read into
/// memory.
const MAX_ADAPTER: u64 = 1 << 30;
/// Chunks asked for at once: what is lost at most is asked for again.
const FETCH_AT_ONCE: u32 = 32;
/// How often a wait looks whether the caller wants to stop.
const STOP_INTERVAL: Duration = Duration::from_millis(100);

/// Why a participant ends before its federation does.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ParticipantError {
    /// The caller asked to stop; what was begun goes on with the next participant.
    #[error("stopped")]
    Stopped,
    /// There is no identity yet.
    #[error("this device has not joined yet: a join code is needed")]
    NotEnrolled,
    /// The folder belongs to another server than the join code.
    #[error(
        "this device has joined another server: leave the join code out, or choose another folder"
    )]
    OtherServer,
    /// The certificate has expired while the device was away.
    #[error("the device's certificate has expired: join again with a new code and folder")]
    Expired,
    /// The server will not have this device.
    #[error("the server refused this device: {}", .0.message)]
    Refused(Refusal),
    /// Key or certificate.
    #[error(transparent)]
    Identity(#[from] IdentityError),
    /// Key or certificate, as TLS sees them.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// The folder.
    #[error(transparent)]
    Folder(#[from] FolderError),
    /// The training.
    #[error(transparent)]
    Trainer(#[from] TrainerError),
    /// The update cannot be written.
    #[error("cannot write the update: {0}")]
    Update(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// The system gives no threads.
    #[error("cannot start: {0}")]
    Runtime(#[source] io::Error),
}

/// A fetched file was whole when it came.
const DAMAGED: &str = "what was fetched is damaged on this device's disk";

/// What a participant tells about its work.
#[derive(Debug)]
#[non_exhaustive]
pub enum Progress<'a> {
    /// Something failed on the way to the server and will be tried again.
    Trouble(&'a str),
    /// The device got work.
    Assigned(&'a RoundAssignment),
    /// There is no work now, for this reason where there is one.
    Idle(Option<&'a str>),
    /// Bytes of a blob that are here.
    Fetching {
        /// Bytes here.
        done: u64,
        /// All bytes.
        size: u64,
    },
    /// A step of training.
    Step(&'a StepReport),
    /// The round is trained and its update kept.
    Trained(&'a TrainingReport),
    /// Another chunk of the update is on the server's disk.
    Sent {
        /// Which chunk.
        chunk: u32,
        /// How many the update has.
        chunks: u32,
    },
    /// Everything is on the server; the update is about to be handed in.
    Committing,
    /// The server has said what became of the update.
    Settled(&'a UploadKey, &'a CommitStatus),
    /// The federation is done, and the adapter it ended with is here.
    Received {
        /// The round that would have begun with it.
        round: u32,
    },
}

/// Whoever is told; `Break` stops the participant at once.
pub type Observer<'a> = dyn FnMut(Progress<'_>) -> ControlFlow<()> + 'a;

fn tell(observer: &mut Observer<'_>, progress: Progress<'_>) -> Result<(), ParticipantError> {
    match observer(progress) {
        ControlFlow::Continue(()) => Ok(()),
        ControlFlow::Break(()) => Err(ParticipantError::Stopped),
    }
}

/// A device in a federation.
pub struct Participant {
    runtime: Runtime,
    folder: DeviceFolder,
    identity: Identity,
    key: DeviceKey,
    link: Link,
    session: Session,
    started: Instant,
    stop: CancelToken,
}

impl Participant {
    /// The device whose identity is in `folder`, or a new one that `code` admits. Waits for a server
    /// that cannot be reached, as long as `stop` and `observer` let it. An update that an earlier
    /// process left is sent first.
    ///
    /// # Errors
    /// When there is neither identity nor code, the server refuses, or the folder cannot be used.
    pub fn open(
        folder: DeviceFolder,
        keys: &dyn KeyStore,
        code: Option<&JoinCode>,
        app: &str,
        stop: CancelToken,
        observer: &mut Observer<'_>,
    ) -> Result<Self, ParticipantError> {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .thread_name("fleetune-network")
            .enable_all()
            .build()
            .map_err(ParticipantError::Runtime)?;
        let known = Identity::load(&folder.identity_path())?;
        let (identity, key) = match (known, code) {
            (Some(mut identity), code) => {
                if let Some(code) = code {
                    identity.move_to(code)?;
                    identity.save(&folder.identity_path())?;
                }
                let key = DeviceKey::load(keys)?.ok_or(ParticipantError::NotEnrolled)?;
                (identity, key)
            }
            (None, Some(code)) => {
                let key = DeviceKey::load_or_make(keys)?;
                let identity = enrol(&runtime, code, &key, app, &stop, observer)?;
                identity.save(&folder.identity_path())?;
                (identity, key)
            }
            (None, None) => return Err(ParticipantError::NotEnrolled),
        };
        let link = Link::new(
            identity.addresses.clone(),
            tls::device(&identity.enrolment.chain, &key.pkcs8())?,
        );
        let session = Session::new(folder.pending_update()?);
        let started = Instant::now();
        Ok(Self { runtime, folder, identity, key, link, session, started, stop })
    }

    /// Who the device is.
    pub fn identity(&self) -> &Identity {
        &self.identity
    }

    /// Takes part until the federation is done, the server refuses, or `rounds` updates have been
    /// answered where a number is given.
    ///
    /// # Errors
    /// When the caller stops it, or this device or its folder fails. Failures of network and server
    /// are waited out.
    pub fn run(
        &mut self,
        trainer: &mut dyn LocalTrainer,
        rounds: Option<u32>,
        observer: &mut Observer<'_>,
    ) -> Result<(), ParticipantError> {
        let mut settled = 0;
        loop {
            if rounds.is_some_and(|rounds| settled >= rounds) {
                return Ok(());
            }
            if self.stop.is_cancelled() {
                return Err(ParticipantError::Stopped);
            }
            match self.session.next(self.started.elapsed()) {
                Action::End(Ending::Finished) => return Ok(()),
                Action::End(Ending::Refused(refusal)) => {
                    return Err(ParticipantError::Refused(refusal));
                }
                Action::Wait(until) => {
                    let wait = until.saturating_sub(self.started.elapsed());
                    self.block_on(async |_| tokio::time::sleep(wait).await)?;
                }
                Action::CheckIn => {
                    self.renew_if_due(observer)?;
                    let federation = self.identity.federation.clone();
                    let mut capabilities = trainer.capabilities();
                    capabilities.models.extend(self.folder.models()?.iter().map(|id| id.0));
                    let request = Request::CheckIn(CheckIn { federation, capabilities });
                    self.ask(&request, observer)?;
                }
                Action::Fetch(assignment) => self.fetch(&assignment, trainer, observer)?,
                Action::Receive(last) => self.receive(&last, trainer, observer)?,
                Action::Train(assignment) => self.train(&assignment, trainer, observer)?,
                Action::Ask(request) => {
                    if matches!(request, Request::Commit(_)) {
                        tell(observer, Progress::Committing)?;
                    }
                    settled += u32::from(self.ask(&request, observer)?);
                }
                Action::Send(offer, chunks) => {
                    settled += u32::from(self.send(&offer, &chunks, observer)?);
                }
            }
        }
    }

    /// Leaves the federation for good: the server revokes the device's certificate.
    ///
    /// # Errors
    /// When the server cannot be reached now.
    pub fn leave(&mut self) -> Result<(), LinkError> {
        let asked = self.runtime.block_on(self.link.ask(&Request::Leave))?;
        self.runtime.block_on(self.link.finish());
        match asked {
            Response::Left => Ok(()),
            Response::Error(refusal) => Err(LinkError::Refused(refusal)),
            _ => Err(LinkError::Unexpected),
        }
    }

    /// For whoever notices, on another thread, that the device has changed its network: an open
    /// connection moves with it at once instead of being found dead.
    pub fn network_watch(&self) -> NetworkWatch {
        self.link.watch_network(self.runtime.handle().clone())
    }

    /// Runs `work` unless the caller wants to stop first.
    fn block_on<T>(
        &mut self,
        work: impl AsyncFnOnce(&mut Link) -> T,
    ) -> Result<T, ParticipantError> {
        let Self { runtime, link, stop, .. } = self;
        block_on(runtime, stop, work(link))
    }

    /// Asks, and gives the answer or the failure to the session. Whether an update was settled.
    fn ask(
        &mut self,
        request: &Request,
        observer: &mut Observer<'_>,
    ) -> Result<bool, ParticipantError> {
        match self.block_on(async |link| link.ask(request).await)? {
            Ok(response) => self.answered(response, observer),
            Err(error) => self.failed(&error, observer),
        }
    }

    fn answered(
        &mut self,
        response: Response,
        observer: &mut Observer<'_>,
    ) -> Result<bool, ParticipantError> {
        let event = self.session.answered(self.started.elapsed(), rand::random(), response);
        match event {
            None => {}
            Some(Event::Assigned(assignment)) => tell(observer, Progress::Assigned(&assignment))?,
            Some(Event::Idle(reason)) => tell(observer, Progress::Idle(reason.as_deref()))?,
            Some(Event::Settled(offer, status)) => {
                match status.counts() {
                    true => self.folder.settle_update(&offer.key.federation)?,
                    false => self.folder.drop_update()?,
                }
                tell(observer, Progress::Settled(&offer.key, &status))?;
                return Ok(true);
            }
            Some(Event::Refused(refusal) | Event::Dropped(refusal)) => {
                tell(observer, Progress::Trouble(&refusal.message))?;
            }
        }
        Ok(false)
    }

    /// Something failed on the way to the server. Whether an update was settled thereby.
    fn failed(
        &mut self,
        error: &LinkError,
        observer: &mut Observer<'_>,
    ) -> Result<bool, ParticipantError> {
        if let Some(refusal) = error.refusal() {
            return self.answered(Response::Error(refusal.clone()), observer);
        }
        self.session.failed(self.started.elapsed(), rand::random());
        if seconds_since_1970() >= self.identity.enrolment.not_after {
            return Err(ParticipantError::Expired);
        }
        tell(observer, Progress::Trouble(&error.to_string()))?;
        Ok(false)
    }

    /// This assignment cannot be done here: ask again later.
    fn give_up(
        &mut self,
        problem: &str,
        observer: &mut Observer<'_>,
    ) -> Result<(), ParticipantError> {
        self.session.gave_up(self.started.elapsed(), rand::random());
        tell(observer, Progress::Trouble(problem))
    }

    /// Asks for a fresh certificate when it is time. A failure is no harm yet: there is time left.
    fn renew_if_due(&mut self, observer: &mut Observer<'_>) -> Result<(), ParticipantError> {
        if seconds_since_1970() < self.identity.enrolment.renew_after {
            return Ok(());
        }
        let csr = self.key.signing_request()?;
        match self.block_on(async |link| link.ask(&Request::Renew { csr }).await)? {
            Ok(Response::Enrolled(enrolment)) => {
                self.identity.enrolment = enrolment;
                self.identity.save(&self.folder.identity_path())?;
                let chain = &self.identity.enrolment.chain;
                self.link.set_tls(tls::device(chain, &self.key.pkcs8())?);
                Ok(())
            }
            Ok(Response::Error(refusal)) => tell(observer, Progress::Trouble(&refusal.message)),
            Ok(_) => tell(observer, Progress::Trouble(&LinkError::Unexpected.to_string())),
            Err(error) => tell(observer, Progress::Trouble(&error.to_string())),
        }
    }

    /// Brings what the assignment names and the device lacks.
    fn fetch(
        &mut self,
        assignment: &RoundAssignment,
        trainer: &mut dyn LocalTrainer,
        observer: &mut Observer<'_>,
    ) -> Result<(), ParticipantError> {
        let RoundAssignment { model, .. } = assignment;
        let small: Vec<Blob> = Route::of(&self.folder, assignment)?.blobs().collect();
        let size = small.iter().fold(0, |sum: u64, blob| sum.saturating_add(blob.size));
        if size > MAX_ADAPTER {
            return self.give_up("the adapter is larger than this device takes", observer);
        }
        let ids: Vec<BlobId> = small.iter().map(|blob| blob.id).collect();
        self.folder.keep_blobs(&ids)?;
        let blobs = small.into_iter().map(|blob| (blob, self.folder.blob_path(blob.id)));
        let mut wanted: Vec<_> = blobs.collect();
        let model_path = self.folder.model_path(model.blob.id);
        if !trainer.has_model(model.blob.id) {
            if !model.offered && !model_path.exists() {
                let problem = format!(
                    "the federation needs the base model {} (SHA-256 {}), which this device does \
                     not have and the server does not hand out",
                    model.name, model.blob.id
                );
                return self.give_up(&problem, observer);
            }
            wanted.push((model.blob, model_path.clone()));
        }
        for (blob, path) in wanted {
            if path.metadata().is_ok_and(|found| found.len() == blob.size) {
                continue;
            }
            if let Err(error) = self.fetch_blob(&blob, &path, observer)? {
                self.failed(&error, observer)?;
                return Ok(());
            }
        }
        if !trainer.has_model(model.blob.id)
            && let Err(error) = trainer.open_model(model.blob.id, &model_path)
        {
            return self.give_up(&error.to_string(), observer);
        }
        self.session.fetched();
        Ok(())
    }

    /// Brings what the federation ended with, and gives it to the trainer.
    fn receive(
        &mut self,
        last: &FinalAdapter,
        trainer: &mut dyn LocalTrainer,
        observer: &mut Observer<'_>,
    ) -> Result<(), ParticipantError> {
        let FinalAdapter { instructions, model, adapter: blob } = last;
        let model_path = self.folder.model_path(model.blob.id);
        let has_model = trainer.has_model(model.blob.id)
            || model_path.exists() && trainer.open_model(model.blob.id, &model_path).is_ok();
        let instructions = match Instructions::from_json(instructions) {
            Ok(instructions) if has_model && blob.size <= MAX_ADAPTER => instructions,
            // Of no use to this device: it never trained for the federation.
            _ => {
                self.session.received();
                return Ok(());
            }
        };
        self.folder.keep_blobs(&[blob.id])?;
        let path = self.folder.blob_path(blob.id);
        if !path.metadata().is_ok_and(|found| found.len() == blob.size)
            && let Err(error) = self.fetch_blob(blob, &path, observer)?
        {
            self.failed(&error, observer)?;
            return Ok(());
        }
        let Some(adapter) = self.folder.read_blob(blob)? else {
            return self.give_up(DAMAGED, observer);
        };
        let download = Download { adapter, control: None };
        let work = Work { instructions: &instructions, download: &download, memory: None };
        match trainer.receive(&work) {
            Ok(()) => tell(observer, Progress::Received { round: instructions.plan.round })?,
            Err(TrainerError::Stopped) => return Err(ParticipantError::Stopped),
            Err(error @ TrainerError::Round(_)) => {
                tell(observer, Progress::Trouble(&error.to_string()))?;
            }
            Err(error) => return Err(error.into()),
        }
        self.session.received();
        Ok(())
    }

    /// Brings one blob to `path`, from where an earlier attempt left it.
    fn fetch_blob(
        &mut self,
        blob: &Blob,
        path: &Path,
        observer: &mut Observer<'_>,
    ) -> Result<Result<(), LinkError>, ParticipantError> {
        let mut stopped = false;
        let fetched = self.block_on(async |link| {
            let manifest = fetch_manifest(link, blob).await?;
            let mut file = BlobFile::open(path, manifest)?;
            let missing = file.missing();
            for range in pieces(&missing) {
                let keep = |index, bytes: &[u8]| {
                    file.keep(index, bytes)?;
                    let done = blob.chunk_range(index).end;
                    let told = tell(observer, Progress::Fetching { done, size: blob.size });
                    stopped |= told.is_err();
                    told.map_err(io::Error::other)
                };
                link.fetch(blob, range, keep).await?;
            }
            match file.missing().is_empty() && file.finish()? {
                true => Ok(()),
                false => Err(LinkError::Lost("bytes arrived damaged".into())),
            }
        })?;
        if stopped {
            return Err(ParticipantError::Stopped);
        }
        Ok(fetched)
    }

    fn train(
        &mut self,
        assignment: &RoundAssignment,
        trainer: &mut dyn LocalTrainer,
        observer: &mut Observer<'_>,
    ) -> Result<(), ParticipantError> {
        let instructions = match Instructions::from_json(&assignment.instructions) {
            Ok(instructions) => instructions,
            Err(error) => return self.give_up(&error.to_string(), observer),
        };
        let route = Route::of(&self.folder, assignment)?;
        let from_held = route.is_from_held();
        let Some(download) = route.read(&self.folder)? else {
            return self.give_up(DAMAGED, observer);
        };
        let memory = self.folder.memory(&assignment.federation)?;
        let memory = memory.as_deref();
        let work = Work { instructions: &instructions, download: &download, memory };
        let mut watch = |step: &StepReport| observer(Progress::Step(step));
        let outcome = match trainer.train(&work, &mut watch) {
            Ok(outcome) => outcome,
            Err(TrainerError::Stopped) => return Err(ParticipantError::Stopped),
            Err(error @ TrainerError::Round(_)) => {
                if from_held {
                    // It may be what is damaged: next time the adapter comes whole.
                    self.folder.forget_version(&assignment.federation)?;
                }
                return self.give_up(&error.to_string(), observer);
            }
            Err(error) => return Err(error.into()),
        };
        let report = outcome.report;
        if let (Some(_), Some(held)) = (&instructions.differences, &outcome.memory.held) {
            let version = version_to_keep(held).map_err(unwritable)?;
            self.folder.keep_version(&assignment.federation, &version)?;
        }
        let offer = self.keep_update(assignment, outcome)?;
        tell(observer, Progress::Trained(&report))?;
        self.session.trained(offer);
        Ok(())
    }

    /// Makes a trained update durable.
    fn keep_update(
        &self,
        assignment: &RoundAssignment,
        outcome: RoundOutcome,
    ) -> Result<UploadOffer, ParticipantError> {
        let RoundOutcome { upload, report, memory, .. } = outcome;
        let bytes = upload.to_bytes().map_err(unwritable)?;
        let header = Header::read(&upload.adapter).map_err(unwritable)?;
        let memory = memory.to_bytes().map_err(unwritable)?;
        let manifest = Manifest::of(&bytes);
        let RoundAssignment { federation, round, attempt, .. } = assignment.clone();
        let offer = UploadOffer {
            key: UploadKey { federation, round, attempt, blob: manifest.blob().id },
            size: manifest.blob().size,
            chunks: manifest.chunks().to_vec(),
            codec: header.codec_id,
            rows: report.rows,
            report: serde_json::to_string(&report).map_err(unwritable)?,
        };
        self.folder.keep_update(&offer, &bytes, memory.as_deref())?;
        Ok(offer)
    }

    fn send(
        &mut self,
        offer: &UploadOffer,
        chunks: &ChunkSet,
        observer: &mut Observer<'_>,
    ) -> Result<bool, ParticipantError> {
        let Self { runtime, link, stop, folder, .. } = self;
        let blob = Blob { id: offer.key.blob, size: offer.size };
        let mut stopped = false;
        let stored = |chunk| {
            let sent = Progress::Sent { chunk, chunks: blob.chunks() };
            stopped |= tell(observer, sent).is_err();
            if stopped { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        };
        let read = |index| folder.read_update_chunk(index);
        let sending = link.send_chunks(blob.id, chunks.of_blob(&blob), read, stored);
        let sent = block_on(runtime, stop, sending)?;
        if stopped {
            return Err(ParticipantError::Stopped);
        }
        match sent {
            Ok(()) => {
                self.session.sent();
                Ok(false)
            }
            Err(error) => self.failed(&error, observer),
        }
    }
}

impl Identity {
    /// The server of `code`, if it is the same, may have new addresses.
    fn move_to(&mut self, code: &JoinCode) -> Result<(), ParticipantError> {
        let authority = self.enrolment.chain.last();
        if authority.is_none_or(|authority| hash(authority) != code.authority) {
            return Err(ParticipantError::OtherServer);
        }
        self.addresses.clone_from(&code.addresses);
        Ok(())
    }
}

fn unwritable(error: impl std::error::Error + Send + Sync + 'static) -> ParticipantError {
    ParticipantError::Update(Box::new(error))
}

fn seconds_since_1970() -> u64 {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |time| time.as_secs())
}

fn block_on<T>(
    runtime: &Runtime,
    stop: &CancelToken,
    work: impl Future<Output = T>,
) -> Result<T, ParticipantError> {
    runtime.block_on(async {
        tokio::select! {
            biased;
            done = work => Ok(done),
            () = stopped(stop) => Err(ParticipantError::Stopped),
        }
    })
}

async fn stopped(stop: &CancelToken) {
    while !stop.is_cancelled() {
        tokio::time::sleep(STOP_INTERVAL).await;
    }
}

/// Asks to be admitted until the server answers.
fn enrol(
    runtime: &Runtime,
    code: &JoinCode,
    key: &DeviceKey,
    app: &str,
    stop: &CancelToken,
    observer: &mut Observer<'_>,
) -> Result<Identity, ParticipantError> {
    let request = Request::Enrol(EnrolRequest {
        invite: code.invite,
        secret: code.secret,
        csr: key.signing_request()?,
        app: app.to_owned(),
    });
    let mut link = Link::new(code.addresses.clone(), tls::enrolment(code.authority)?);
    let mut backoff = Backoff::default();
    loop {
        let answer = block_on(runtime, stop, link.ask(&request))?;
        let problem = match answer {
            Ok(Response::Enrolled(enrolment)) => {
                runtime.block_on(link.finish());
                return Ok(Identity::new(code, enrolment));
            }
            Ok(Response::Error(refusal)) | Err(LinkError::Closed(refusal)) => {
                if refusal.code.blame() == Blame::Device {
                    return Err(ParticipantError::Refused(refusal));
                }
                refusal.message
            }
            Ok(_) => LinkError::Unexpected.to_string(),
            Err(error) => error.to_string(),
        };
        tell(observer, Progress::Trouble(&problem))?;
        let wait = backoff.next(rand::random());
        block_on(runtime, stop, tokio::time::sleep(wait))?;
    }
}

/// All chunk hashes of a blob, page by page.
async fn fetch_manifest(link: &mut Link, blob: &Blob) -> Result<Manifest, LinkError> {
    let mut chunks = Vec::new();
    while chunks.len() < blob.chunks() as usize {
        // Below a u32: fewer than the blob's chunks.
        let first = chunks.len() as u32;
        match link.ask(&Request::Manifest { blob: blob.id, first }).await? {
            Response::Manifest { size, hashes }
                if size == blob.size && (1..=MANIFEST_PAGE).contains(&hashes.len()) =>
            {
                chunks.extend(hashes);
            }
            Response::Error(refusal) => return Err(LinkError::Refused(refusal)),
            _ => return Err(LinkError::Unexpected),
        }
    }
    Manifest::new(*blob, chunks).map_err(|_| LinkError::Unexpected)
}

/// Runs of chunks, cut into pieces of [`FETCH_AT_ONCE`].
fn pieces(chunks: &ChunkSet) -> impl Iterator<Item = ChunkRange> + '_ {
    chunks.ranges.iter().flat_map(|range| {
        let step = FETCH_AT_ONCE as usize;
        (range.first..range.first.saturating_add(range.count)).step_by(step).map(|first| {
            let count = (range.first + range.count - first).min(FETCH_AT_ONCE);
            ChunkRange { first, count }
        })
    })
}
