//! Uploads under way: chunk by chunk into a file, until a commit takes it.
//!
//! Each device has room for two: where two devices show one identity, each can finish its own, and
//! neither drives the other out for ever. What a chunk's acknowledgement promises is that the server has it
//! now; what survives a restart is found by hashing the file again, and what does not is asked for
//! again. Only a commit promises that an update is kept.

use std::collections::HashMap;
use std::fs::{self, File};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use fleetune_core::protocol::{
    Blob, BlobId, CHUNK_LEN, ChunkSet, DeviceId, FRAME_PREFIX, Manifest, UploadOffer, decode_frame,
    encode_frame, hash,
};

use super::{StoreError, make_folder};

const OFFER_FILE: &str = "offer";
/// Uploads that a device may have under way.
const ROOM: usize = 2;

/// Why an upload cannot go on.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum UploadError {
    /// The offer contradicts itself.
    #[error("the update's chunks do not describe it: {0}")]
    Offer(String),
    /// There is no such chunk.
    #[error("the update has {chunks} chunks, none of them is number {index}")]
    NoSuchChunk {
        /// The number asked for.
        index: u32,
        /// Chunks there are.
        chunks: u32,
    },
    /// A file cannot be read or written.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// All uploads under way.
#[derive(Debug)]
pub struct Incoming {
    folder: PathBuf,
    open: Mutex<UnderWay>,
}

type UnderWay = HashMap<(DeviceId, BlobId), Arc<Mutex<Upload>>>;

/// One upload under way.
#[derive(Debug)]
pub struct Upload {
    offer: UploadOffer,
    manifest: Manifest,
    folder: PathBuf,
    have: Vec<bool>,
}

impl Incoming {
    pub(super) fn open(folder: &Path) -> Result<Self, StoreError> {
        make_folder(folder)?;
        Ok(Self { folder: folder.to_owned(), open: Mutex::default() })
    }

    /// Announces an upload. One that was begun before goes on; of others of the device the oldest are
    /// gone where there is no room.
    ///
    /// # Errors
    /// When the offer contradicts itself or the disk does not take it.
    pub fn begin(
        &self,
        device: DeviceId,
        offer: UploadOffer,
    ) -> Result<Arc<Mutex<Upload>>, UploadError> {
        let manifest = manifest_of(&offer)?;
        if let Some(known) = self.find(device, offer.key.blob)? {
            let same = lock(&known).offer == offer;
            if same {
                return Ok(known);
            }
        }
        self.make_room(device, offer.key.blob)?;
        let folder = self.folder_of(device, offer.key.blob);
        make_folder(&folder)?;
        let frame = encode_frame(&offer).map_err(|error| UploadError::Offer(error.to_string()))?;
        let have = vec![false; manifest.chunks().len()];
        let blob = offer.key.blob;
        let upload = Upload { offer, manifest, folder, have };
        fs::write(upload.folder.join(OFFER_FILE), frame)
            .and_then(|()| File::create(upload.data()).map(drop))
            .map_err(StoreError::io("write", &upload.folder))?;
        let upload = Arc::new(Mutex::new(upload));
        self.lock().insert((device, blob), Arc::clone(&upload));
        Ok(upload)
    }

    /// The device's upload of `blob`, as far as it has come; also one from before a restart.
    ///
    /// # Errors
    /// When the disk cannot be read.
    pub fn find(
        &self,
        device: DeviceId,
        blob: BlobId,
    ) -> Result<Option<Arc<Mutex<Upload>>>, UploadError> {
        let mut open = self.lock();
        if let Some(known) = open.get(&(device, blob)) {
            return Ok(Some(Arc::clone(known)));
        }
        let folder = self.folder_of(device, blob);
        let Some(upload) = Upload::restore(folder).filter(|upload| upload.offer.key.blob == blob)
        else {
            return Ok(None);
        };
        let upload = Arc::new(Mutex::new(upload));
        open.insert((device, blob), Arc::clone(&upload));
        Ok(Some(upload))
    }

    /// Removes the device's uploads.
    ///
    /// # Errors
    /// When the system refuses.
    pub fn discard(&self, device: DeviceId) -> Result<(), StoreError> {
        let mut open = self.lock();
        open.retain(|&(whose, _), _| whose != device);
        self.folders_of(device)?.iter().try_for_each(|folder| remove(folder))
    }

    /// Forgets what is in memory of the device's uploads; the disk remembers.
    pub fn forget(&self, device: DeviceId) {
        self.lock().retain(|&(whose, _), _| whose != device);
    }

    /// Removes an upload `blob` that was begun otherwise, and the device's oldest ones, until there is
    /// room for one more.
    fn make_room(&self, device: DeviceId, blob: BlobId) -> Result<(), StoreError> {
        let mut open = self.lock();
        open.remove(&(device, blob));
        let own = self.folder_of(device, blob);
        remove(&own)?;
        let mut others = self.folders_of(device)?;
        // By when they were announced; one that cannot be asked counts as the oldest.
        others.sort_by_key(|folder| {
            fs::metadata(folder.join(OFFER_FILE)).and_then(|m| m.modified()).ok()
        });
        let surplus = (others.len() + 1).saturating_sub(ROOM);
        for folder in others.iter().take(surplus) {
            open.retain(|&(whose, blob), _| self.folder_of(whose, blob) != *folder);
            remove(folder)?;
        }
        Ok(())
    }

    /// The blobs whose uploads are under way.
    pub(super) fn announced(&self) -> Result<Vec<BlobId>, StoreError> {
        let entries = fs::read_dir(&self.folder).map_err(StoreError::io("read", &self.folder))?;
        let offers = entries.filter_map(|entry| read_offer(&entry.ok()?.path()));
        Ok(offers.map(|offer| offer.key.blob).collect())
    }

    fn folder_of(&self, device: DeviceId, blob: BlobId) -> PathBuf {
        self.folder.join(format!("{device}-{blob}"))
    }

    fn folders_of(&self, device: DeviceId) -> Result<Vec<PathBuf>, StoreError> {
        let start = format!("{device}-");
        let entries = fs::read_dir(&self.folder).map_err(StoreError::io("read", &self.folder))?;
        let paths = entries.filter_map(|entry| {
            let entry = entry.ok()?;
            entry.file_name().to_str()?.starts_with(&start).then(|| entry.path())
        });
        Ok(paths.collect())
    }

    fn lock(&self) -> MutexGuard<'_, UnderWay> {
        // The map is changed in single steps: a panic leaves it whole.
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Removes a folder, which may be gone.
fn remove(folder: &Path) -> Result<(), StoreError> {
    match fs::remove_dir_all(folder) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(StoreError::io("remove", folder)(error))
        }
        _ => Ok(()),
    }
}

/// An upload for one request at a time.
pub fn lock(upload: &Mutex<Upload>) -> MutexGuard<'_, Upload> {
    // A panic between writing a chunk and noting it leaves a chunk to be sent again.
    upload.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Upload {
    /// What the device announced.
    pub fn offer(&self) -> &UploadOffer {
        &self.offer
    }

    /// The content.
    pub fn blob(&self) -> Blob {
        self.manifest.blob()
    }

    /// The file that fills. It has the update's name: where two devices show one identity, a chunk of
    /// the upload that had to go does not end in the one that took its place.
    pub fn data(&self) -> PathBuf {
        data_file(&self.folder, &self.offer)
    }

    /// The bytes that chunk `index` has.
    ///
    /// # Errors
    /// When there is no such chunk.
    pub fn chunk_len(&self, index: u32) -> Result<usize, UploadError> {
        let chunks = self.blob().chunks();
        if index >= chunks {
            return Err(UploadError::NoSuchChunk { index, chunks });
        }
        let range = self.blob().chunk_range(index);
        Ok((range.end - range.start) as usize)
    }

    /// The chunks that are missing.
    pub fn missing(&self) -> ChunkSet {
        (0..self.blob().chunks()).filter(|&index| !self.have[index as usize]).collect()
    }

    /// Takes in a chunk. Whether it is the one announced; a damaged one changes nothing.
    ///
    /// # Errors
    /// When there is no such chunk or the disk does not take it.
    pub fn store(&mut self, index: u32, bytes: &[u8]) -> Result<bool, UploadError> {
        let len = self.chunk_len(index)?;
        if bytes.len() != len || !self.manifest.matches(index, bytes) {
            return Ok(false);
        }
        let path = self.data();
        let write = || -> io::Result<()> {
            // It may be gone: a commit that was cut off took it.
            let mut file = File::options().write(true).create(true).truncate(false).open(&path)?;
            file.seek(SeekFrom::Start(u64::from(index) * CHUNK_LEN))?;
            file.write_all(bytes)
        };
        write().map_err(StoreError::io("write", &path))?;
        self.have[index as usize] = true;
        Ok(true)
    }

    /// An upload from before a restart, with those chunks that are whole.
    fn restore(folder: PathBuf) -> Option<Self> {
        let offer = read_offer(&folder)?;
        let manifest = manifest_of(&offer).ok()?;
        let mut have = Vec::with_capacity(manifest.chunks().len());
        let mut file = File::open(data_file(&folder, &offer)).ok();
        let mut chunk = Vec::new();
        for expected in manifest.chunks() {
            chunk.clear();
            let read = file.as_mut().map(|file| file.take(CHUNK_LEN).read_to_end(&mut chunk));
            have.push(matches!(read, Some(Ok(_))) && hash(&chunk) == *expected);
        }
        Some(Self { offer, manifest, folder, have })
    }
}

fn data_file(folder: &Path, offer: &UploadOffer) -> PathBuf {
    folder.join(offer.key.blob.to_string())
}

fn read_offer(folder: &Path) -> Option<UploadOffer> {
    let frame = fs::read(folder.join(OFFER_FILE)).ok()?;
    decode_frame(frame.get(FRAME_PREFIX..)?).ok()
}

fn manifest_of(offer: &UploadOffer) -> Result<Manifest, UploadError> {
    let blob = Blob { id: offer.key.blob, size: offer.size };
    if offer.size == 0 {
        return Err(UploadError::Offer("it is empty".into()));
    }
    Manifest::new(blob, offer.chunks.clone()).map_err(|error| UploadError::Offer(error.to_string()))
}
