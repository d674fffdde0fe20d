//! A blob that is being fetched: its chunks in a file, each kept only if its hash is right.
//!
//! What is there is judged by its hashes alone, so that a killed app goes on where it was and
//! whatever a crash left of a chunk is fetched again.

use std::fs::{self, File, OpenOptions};
use std::io::{self, BufReader, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use crate::protocol::{CHUNK_LEN, ChunkSet, Manifest};

/// A blob that is being fetched.
#[derive(Debug)]
pub(super) struct BlobFile {
    file: File,
    temporary: PathBuf,
    path: PathBuf,
    manifest: Manifest,
    here: Vec<bool>,
}

impl BlobFile {
    /// The blob of `manifest` as far as it came, to end up at `path`.
    ///
    /// # Errors
    /// When the file beside `path` cannot be read or written.
    pub(super) fn open(path: &Path, manifest: Manifest) -> io::Result<Self> {
        let temporary = path.with_extension("part");
        let mut options = OpenOptions::new();
        let mut file =
            options.read(true).write(true).create(true).truncate(false).open(&temporary)?;
        let mut here = Vec::with_capacity(manifest.chunks().len());
        let mut chunk = Vec::new();
        for index in 0..manifest.blob().chunks() {
            chunk.clear();
            (&mut file).take(CHUNK_LEN).read_to_end(&mut chunk)?;
            here.push(manifest.matches(index, &chunk));
        }
        Ok(Self { file, temporary, path: path.to_owned(), manifest, here })
    }

    /// The chunks that are not here.
    pub(super) fn missing(&self) -> ChunkSet {
        let missing = (0..).zip(&self.here).filter(|(_, here)| !**here);
        missing.map(|(index, _)| index).collect()
    }

    /// Keeps a chunk; one with another hash than it should have is passed over.
    ///
    /// # Errors
    /// When the disk does not take it.
    pub(super) fn keep(&mut self, index: u32, bytes: &[u8]) -> io::Result<()> {
        if !self.manifest.matches(index, bytes) {
            return Ok(());
        }
        self.file.seek(SeekFrom::Start(self.manifest.blob().chunk_range(index).start))?;
        self.file.write_all(bytes)?;
        // `matches` has found the index in the manifest.
        self.here[index as usize] = true;
        Ok(())
    }

    /// Moves the blob to its place, when every chunk is here and the whole is what it should be.
    /// `false`: it is not, and is to be fetched from its beginning.
    ///
    /// # Errors
    /// When the disk fails.
    pub(super) fn finish(self) -> io::Result<bool> {
        let Self { mut file, temporary, path, manifest, .. } = self;
        let blob = manifest.blob();
        // An earlier version of the blob may have been longer.
        file.set_len(blob.size)?;
        file.seek(SeekFrom::Start(0))?;
        let found = Manifest::read(&mut BufReader::with_capacity(1 << 20, &file))?;
        if found.blob() != blob {
            fs::remove_file(&temporary)?;
            return Ok(false);
        }
        file.sync_all()?;
        fs::rename(&temporary, &path)?;
        Ok(true)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bytes() -> Vec<u8> {
        (0..3 * CHUNK_LEN + 7).map(|i| ((i * i) >> 7) as u8).collect()
    }

    fn chunk(index: u32) -> Vec<u8> {
        let range = Manifest::of(&bytes()).blob().chunk_range(index);
        bytes()[range.start as usize..range.end as usize].to_vec()
    }

    #[test]
    fn a_blob_goes_on_where_a_killed_process_left_it() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("blob");
        let open = || BlobFile::open(&path, Manifest::of(&bytes())).unwrap();
        let mut file = open();
        assert_eq!(file.missing(), ChunkSet::all(&Manifest::of(&bytes()).blob()));
        file.keep(3, &chunk(3)).unwrap();
        file.keep(1, &chunk(1)).unwrap();
        drop(file);
        let mut file = open();
        assert_eq!(file.missing(), [0, 2].into_iter().collect());
        file.keep(0, &chunk(0)).unwrap();
        file.keep(2, &chunk(2)).unwrap();
        assert!(file.missing().is_empty() && !path.exists());
        assert!(file.finish().unwrap());
        assert_eq!(fs::read(&path).unwrap(), bytes());
    }

    #[test]
    fn damaged_chunks_are_not_kept_and_damage_on_the_disk_is_found() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("blob");
        let mut file = BlobFile::open(&path, Manifest::of(&bytes())).unwrap();
        for index in 0..4 {
            file.keep(index, &chunk(index)).unwrap();
        }
        let mut damaged = chunk(2);
        damaged[100] ^= 1;
        file.keep(2, &damaged).unwrap();
        file.keep(9, &chunk(0)).unwrap();
        assert!(file.missing().is_empty());
        drop(file);
        let part = path.with_extension("part");
        let mut stored = fs::read(&part).unwrap();
        stored[CHUNK_LEN as usize + 5] ^= 1;
        fs::write(&part, stored).unwrap();
        let file = BlobFile::open(&path, Manifest::of(&bytes())).unwrap();
        assert_eq!(file.missing(), [1].into_iter().collect());
    }

    #[test]
    fn chunks_that_do_not_make_the_blob_are_thrown_away() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("blob");
        let right = Manifest::of(&bytes());
        let lie = Manifest::new(Manifest::of(b"other").blob(), right.chunks()[..1].to_vec());
        let mut file = BlobFile::open(&path, lie.unwrap()).unwrap();
        file.keep(0, &chunk(0)).unwrap();
        assert!(!file.finish().unwrap());
        assert!(!path.exists() && !path.with_extension("part").exists());
    }
}
