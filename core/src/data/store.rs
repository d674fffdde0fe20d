//! Rows of a data file, read when they are asked for.
//!
//! Memory holds where each row stands (16 bytes a row), not the rows. A plain file is read in
//! place; a compressed one is unpacked once into a temporary file that has no name and vanishes
//! with the store, or into memory where it is small. Reads take no lock and may come from any
//! thread.

use std::borrow::Cow;
use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};

use super::lines::{LineReader, ReadError};

/// Unpacked rows of up to this size stay in memory.
const IN_MEMORY_BYTES: usize = 4 << 20;

/// Where a row stands in the unpacked text.
#[derive(Debug, Clone, Copy)]
struct Position {
    offset: u64,
    length: u32,
    line: u32,
}

/// What holds the rows' text.
#[derive(Debug)]
enum Backing {
    Memory(Vec<u8>),
    File(File),
}

/// The rows of one data file.
#[derive(Debug)]
pub(super) struct RowStore {
    path: PathBuf,
    backing: Backing,
    positions: Vec<Position>,
}

impl RowStore {
    /// Reads the file at `path` to its end and keeps the rows for which `keep` says so. `keep` gets
    /// the line's number and text. `spool` is the folder for the temporary file.
    pub fn open<E: From<ReadError>>(
        path: &Path,
        spool: &Path,
        keep: impl FnMut(u64, &str) -> Result<bool, E>,
    ) -> Result<Self, E> {
        let reader = LineReader::open(path)?;
        let sink = if reader.is_plain() {
            let source = File::open(path);
            Sink::InPlace(
                source.map_err(|source| ReadError::Open { path: path.to_owned(), source })?,
            )
        } else {
            Sink::Memory { rows: Vec::new(), most: IN_MEMORY_BYTES }
        };
        Self::fill(reader, sink, spool, keep)
    }

    /// The same for bytes in memory, where the rows stay: nothing of them goes to the disk.
    pub fn from_bytes<E: From<ReadError>>(
        name: &Path,
        bytes: impl Into<Cow<'static, [u8]>>,
        keep: impl FnMut(u64, &str) -> Result<bool, E>,
    ) -> Result<Self, E> {
        let reader = LineReader::from_bytes(name, bytes.into())?;
        let sink = Sink::Memory { rows: Vec::new(), most: usize::MAX };
        Self::fill(reader, sink, Path::new(""), keep)
    }

    fn fill<E: From<ReadError>>(
        mut reader: LineReader,
        mut sink: Sink,
        spool: &Path,
        mut keep: impl FnMut(u64, &str) -> Result<bool, E>,
    ) -> Result<Self, E> {
        let path = reader.path().to_owned();
        let spool_error =
            |source| ReadError::Spool { path: path.clone(), folder: spool.to_owned(), source };
        let mut positions = Vec::new();
        let mut text = String::new();
        let (mut written, mut any) = (0u64, false);
        while let Some(line) = reader.next_line(&mut text)? {
            any = true;
            let number = u32::try_from(line.number)
                .map_err(|_| ReadError::TooManyRows { path: path.clone() })?;
            if !keep(line.number, &text)? {
                continue;
            }
            let offset = if matches!(sink, Sink::InPlace(_)) { line.offset } else { written };
            sink.write(text.as_bytes(), spool).map_err(spool_error)?;
            written += text.len() as u64;
            // A line's length is below `MAX_LINE_BYTES`, far below 2^32.
            positions.push(Position { offset, length: text.len() as u32, line: number });
        }
        if !any {
            return Err(ReadError::Empty { path }.into());
        }
        positions.shrink_to_fit();
        let backing = sink.finish().map_err(spool_error)?;
        Ok(Self { path, backing, positions })
    }

    /// The file's path.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Number of rows kept.
    pub fn len(&self) -> usize {
        self.positions.len()
    }

    /// The line on which row `index` stands. `index` is below [`len`](Self::len).
    pub fn line(&self, index: usize) -> u64 {
        u64::from(self.positions[index].line)
    }

    /// The text of row `index`, which is below [`len`](Self::len).
    pub fn read(&self, index: usize) -> Result<String, ReadError> {
        let position = self.positions[index];
        let line = u64::from(position.line);
        let mut bytes = vec![0; position.length as usize];
        match &self.backing {
            Backing::Memory(all) => {
                let start = position.offset as usize;
                bytes.copy_from_slice(&all[start..start + position.length as usize]);
            }
            Backing::File(file) => read_exact_at(file, &mut bytes, position.offset)
                .map_err(|source| ReadError::Io { path: self.path.clone(), line, source })?,
        }
        // The text was UTF-8 when it was indexed; a file that was changed since may differ.
        String::from_utf8(bytes).map_err(|e| ReadError::NotUtf8 {
            path: self.path.clone(),
            line,
            column: e.utf8_error().valid_up_to() + 1,
        })
    }
}

/// Where unpacked rows go while the file is read.
enum Sink {
    /// Nowhere: the file itself is plain text.
    InPlace(File),
    /// Into memory up to `most` bytes, then into a file.
    Memory {
        rows: Vec<u8>,
        most: usize,
    },
    Spool(BufWriter<File>),
}

impl Sink {
    fn write(&mut self, row: &[u8], spool: &Path) -> io::Result<()> {
        if let Self::Memory { rows, most } = self {
            if rows.len() + row.len() <= *most {
                rows.extend_from_slice(row);
                return Ok(());
            }
            let mut file = BufWriter::new(tempfile::tempfile_in(spool)?);
            file.write_all(rows)?;
            *self = Self::Spool(file);
        }
        match self {
            Self::Spool(file) => file.write_all(row),
            Self::InPlace(_) | Self::Memory { .. } => Ok(()),
        }
    }

    fn finish(self) -> io::Result<Backing> {
        Ok(match self {
            Self::InPlace(file) => Backing::File(file),
            Self::Memory { mut rows, .. } => {
                rows.shrink_to_fit();
                Backing::Memory(rows)
            }
            Self::Spool(file) => Backing::File(file.into_inner().map_err(|e| e.into_error())?),
        })
    }
}

#[cfg(unix)]
fn read_exact_at(file: &File, bytes: &mut [u8], offset: u64) -> io::Result<()> {
    std::os::unix::fs::FileExt::read_exact_at(file, bytes, offset)
}

#[cfg(windows)]
fn read_exact_at(file: &File, mut bytes: &mut [u8], mut offset: u64) -> io::Result<()> {
    use std::os::windows::fs::FileExt;
    while !bytes.is_empty() {
        match file.seek_read(bytes, offset)? {
            0 => return Err(io::ErrorKind::UnexpectedEof.into()),
            n => {
                bytes = &mut bytes[n..];
                offset += n as u64;
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn open(path: &Path, keep: impl Fn(u64) -> bool) -> Result<RowStore, ReadError> {
        RowStore::open(path, &std::env::temp_dir(), |line, _| Ok(keep(line)))
    }

    #[test]
    fn rows_come_back_from_plain_small_and_spooled_files() {
        let folder = tempfile::tempdir().unwrap();
        let row = |i: usize| format!("{{\"n\":{i},\"text\":\"ä{}\"}}", "y".repeat(i % 900));
        let text: String = (0..9000).map(|i| row(i) + "\n\n").collect();
        assert!(text.len() > IN_MEMORY_BYTES / 2);
        let cases = [
            ("small.zst", zstd::encode_all(&text.as_bytes()[..text.len() / 8], 1).unwrap()),
            ("large.zst", zstd::encode_all(text.repeat(2).as_bytes(), 1).unwrap()),
            ("plain", text.clone().into_bytes()),
        ];
        for (name, bytes) in cases {
            let path = folder.path().join(name);
            std::fs::write(&path, bytes).unwrap();
            let store = open(&path, |line| line % 4 == 1).unwrap();
            assert_eq!(name == "small.zst", matches!(store.backing, Backing::Memory(_)), "{name}");
            for i in [0, 1, 77, 400] {
                assert_eq!(store.read(i).unwrap(), row(2 * i), "{name}");
                assert_eq!(store.line(i), 4 * i as u64 + 1);
            }
        }
    }

    #[test]
    fn many_threads_read_at_once() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let text: String = (0..1000).map(|i| format!("{i}\n")).collect();
        std::fs::write(file.path(), text).unwrap();
        let store = open(file.path(), |_| true).unwrap();
        std::thread::scope(|scope| {
            for start in 0..4 {
                let store = &store;
                scope.spawn(move || {
                    for i in (start..1000).step_by(4) {
                        assert_eq!(store.read(i).unwrap(), i.to_string());
                    }
                });
            }
        });
    }

    #[test]
    fn an_empty_file_is_an_error() {
        let file = tempfile::NamedTempFile::new().unwrap();
        assert!(matches!(open(file.path(), |_| true), Err(ReadError::Empty { .. })));
        std::fs::write(file.path(), " \n\n").unwrap();
        assert!(matches!(open(file.path(), |_| true), Err(ReadError::Empty { .. })));
    }

    #[test]
    fn a_file_cut_short_after_it_was_opened_is_an_error_at_its_line() {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), "{}\n{\"a\":1}\n").unwrap();
        let store = open(file.path(), |_| true).unwrap();
        std::fs::write(file.path(), "{}\n").unwrap();
        assert!(matches!(store.read(1), Err(ReadError::Io { line: 2, .. })));
    }
}
