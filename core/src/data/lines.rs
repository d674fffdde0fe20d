//! Lines of a JSON Lines file, plain, gzip or zstd.
//!
//! The compression is told by the file's first bytes, never by its name. Lines come one at a time
//! and none may be longer than [`MAX_LINE_BYTES`], so reading takes the same memory whatever the
//! file's size, and a small compressed file that unpacks without end is stopped.

use std::borrow::Cow;
use std::fs::File;
use std::io::{self, BufRead, BufReader, Cursor, Read};
use std::path::{Path, PathBuf};

/// The longest line that is read, in bytes.
pub const MAX_LINE_BYTES: usize = 16 << 20;

/// How far back a zstd stream may refer (log2 of bytes); bounds the decoder's memory.
const ZSTD_WINDOW_LOG_MAX: u32 = 27;

/// Why a data file could not be read.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ReadError {
    /// The file is not there or may not be opened.
    #[error("cannot open {}: {source}", path.display())]
    Open {
        /// The file.
        path: PathBuf,
        /// What the system says.
        source: io::Error,
    },
    /// Reading failed on the way.
    #[error("{}:{line}: reading failed: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// The line that was being read.
        line: u64,
        /// What the system says.
        source: io::Error,
    },
    /// The compressed stream stops before its end.
    #[error("{}:{line}: the file ends inside its {compression} stream; download or compress it again", path.display())]
    Truncated {
        /// The file.
        path: PathBuf,
        /// The line that was being read.
        line: u64,
        /// `gzip` or `zstd`.
        compression: &'static str,
    },
    /// The compressed stream is damaged.
    #[error("{}:{line}: the file's {compression} stream is damaged ({source}); download or compress it again", path.display())]
    Corrupt {
        /// The file.
        path: PathBuf,
        /// The line that was being read.
        line: u64,
        /// `gzip` or `zstd`.
        compression: &'static str,
        /// What the decoder says.
        source: io::Error,
    },
    /// The file is of a kind that holds no JSON Lines.
    #[error("{} is {kind}, not JSON Lines; plain text, gzip and zstd are read", path.display())]
    Unsupported {
        /// The file.
        path: PathBuf,
        /// What its first bytes say it is.
        kind: &'static str,
    },
    /// A line is too long.
    #[error("{}:{line}: the line is longer than {} MiB; one JSON object is expected on each line", path.display(), MAX_LINE_BYTES >> 20)]
    LineTooLong {
        /// The file.
        path: PathBuf,
        /// The line, counted from 1.
        line: u64,
    },
    /// A line is not UTF-8.
    #[error("{}:{line}: the text is not UTF-8 (byte {column} of the line); convert the file to UTF-8", path.display())]
    NotUtf8 {
        /// The file.
        path: PathBuf,
        /// The line, counted from 1.
        line: u64,
        /// The first byte that is wrong, counted from 1.
        column: usize,
    },
    /// The file has no line but blank ones.
    #[error("{} holds no rows", path.display())]
    Empty {
        /// The file.
        path: PathBuf,
    },
    /// More rows than can be counted.
    #[error("{} holds more than {} rows; split it", path.display(), u32::MAX)]
    TooManyRows {
        /// The file.
        path: PathBuf,
    },
    /// The unpacked rows could not be kept in a temporary file.
    #[error("cannot keep the unpacked rows of {} in a temporary file in {}: {source}", path.display(), folder.display())]
    Spool {
        /// The file.
        path: PathBuf,
        /// Where the temporary file was to be.
        folder: PathBuf,
        /// What the system says.
        source: io::Error,
    },
}

/// What a file's first bytes say about it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Container {
    Plain,
    Gzip,
    Zstd,
    Unsupported(&'static str),
}

impl Container {
    fn detect(head: &[u8]) -> Self {
        match head {
            [0x1f, 0x8b, ..] => Self::Gzip,
            // The second form is a skippable frame, with which parallel compressors begin.
            [0x28, 0xb5, 0x2f, 0xfd, ..] | [0x50..=0x5f, 0x2a, 0x4d, 0x18, ..] => Self::Zstd,
            [b'P', b'K', 3, 4, ..] => Self::Unsupported("a zip archive"),
            [b'P', b'A', b'R', b'1', ..] => Self::Unsupported("a Parquet file"),
            [0xfd, b'7', b'z', b'X', b'Z', ..] => Self::Unsupported("xz-compressed"),
            [b'B', b'Z', b'h', b'1'..=b'9', ..] => Self::Unsupported("bzip2-compressed"),
            [b'A', b'R', b'R', b'O', b'W', ..] => Self::Unsupported("an Arrow file"),
            _ => Self::Plain,
        }
    }

    fn compression(self) -> Option<&'static str> {
        match self {
            Self::Gzip => Some("gzip"),
            Self::Zstd => Some("zstd"),
            Self::Plain | Self::Unsupported(_) => None,
        }
    }
}

/// Where a line stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Line {
    /// Counted from 1, blank lines included.
    pub number: u64,
    /// Bytes of unpacked text before its first character.
    pub offset: u64,
}

/// The lines of a JSON Lines file that are not blank, each with its number (from 1), for rows of
/// forms that a [`Dataset`](super::Dataset) does not know.
pub struct TextLines(LineReader);

impl TextLines {
    /// Opens the file at `path`: plain, gzip or zstd.
    ///
    /// # Errors
    /// When it cannot be opened or holds no text.
    pub fn open(path: &Path) -> Result<Self, ReadError> {
        LineReader::open(path).map(Self)
    }
}

impl Iterator for TextLines {
    type Item = Result<(u64, String), ReadError>;

    fn next(&mut self) -> Option<Self::Item> {
        let mut text = String::new();
        let line = self.0.next_line(&mut text).transpose()?;
        Some(line.map(|line| (line.number, text)))
    }
}

/// Reads a file line by line.
pub(super) struct LineReader {
    path: PathBuf,
    container: Container,
    input: Box<dyn BufRead>,
    number: u64,
    offset: u64,
}

impl LineReader {
    /// Opens the file at `path` and finds out how it is compressed.
    pub fn open(path: &Path) -> Result<Self, ReadError> {
        let failed = |source| ReadError::Open { path: path.to_owned(), source };
        let file = File::open(path).map_err(failed)?;
        if file.metadata().map_err(failed)?.is_dir() {
            return Err(failed(io::Error::from(io::ErrorKind::IsADirectory)));
        }
        Self::new(path, BufReader::with_capacity(64 << 10, file))
    }

    /// Reads `bytes` as if they were the file `name`.
    pub fn from_bytes(name: &Path, bytes: Cow<'static, [u8]>) -> Result<Self, ReadError> {
        Self::new(name, Cursor::new(bytes))
    }

    fn new(path: &Path, mut input: impl BufRead + 'static) -> Result<Self, ReadError> {
        let path = path.to_owned();
        let head = input.fill_buf().map_err(|source| ReadError::Io {
            path: path.clone(),
            line: 1,
            source,
        })?;
        let container = Container::detect(head);
        let input: Box<dyn BufRead> = match container {
            Container::Plain => Box::new(input),
            Container::Gzip => {
                Box::new(BufReader::new(flate2::bufread::MultiGzDecoder::new(input)))
            }
            Container::Zstd => {
                let decoder = zstd::stream::read::Decoder::with_buffer(input).and_then(|mut d| {
                    d.window_log_max(ZSTD_WINDOW_LOG_MAX)?;
                    Ok(d)
                });
                let decoder = decoder.map_err(|source| ReadError::Io {
                    path: path.clone(),
                    line: 1,
                    source,
                })?;
                Box::new(BufReader::new(decoder))
            }
            Container::Unsupported(kind) => return Err(ReadError::Unsupported { path, kind }),
        };
        Ok(Self { path, container, input, number: 0, offset: 0 })
    }

    /// The file's path.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Whether offsets of lines are offsets in the file itself.
    pub fn is_plain(&self) -> bool {
        self.container == Container::Plain
    }

    /// Puts the next line that is not blank into `text`, without its line end and without a byte
    /// order mark. `None` at the end of the file.
    pub fn next_line(&mut self, text: &mut String) -> Result<Option<Line>, ReadError> {
        let mut bytes = std::mem::take(text).into_bytes();
        loop {
            bytes.clear();
            self.number += 1;
            let line = self.number;
            let limit = MAX_LINE_BYTES as u64 + 2;
            let read = (&mut self.input).take(limit).read_until(b'\n', &mut bytes);
            let read = read.map_err(|source| self.read_error(source))?;
            if read == 0 {
                return Ok(None);
            }
            let mut start = self.offset;
            self.offset += read as u64;
            while matches!(bytes.last(), Some(b'\n' | b'\r')) {
                bytes.pop();
            }
            if bytes.len() > MAX_LINE_BYTES {
                return Err(ReadError::LineTooLong { path: self.path.clone(), line });
            }
            if line == 1 && bytes.starts_with(b"\xef\xbb\xbf") {
                bytes.drain(..3);
                start += 3;
            }
            if bytes.iter().all(u8::is_ascii_whitespace) {
                continue;
            }
            *text = String::from_utf8(bytes).map_err(|e| ReadError::NotUtf8 {
                path: self.path.clone(),
                line,
                column: e.utf8_error().valid_up_to() + 1,
            })?;
            return Ok(Some(Line { number: line, offset: start }));
        }
    }

    fn read_error(&self, source: io::Error) -> ReadError {
        let (path, line) = (self.path.clone(), self.number);
        match self.container.compression() {
            Some(compression) if source.kind() == io::ErrorKind::UnexpectedEof => {
                ReadError::Truncated { path, line, compression }
            }
            Some(compression) => ReadError::Corrupt { path, line, compression, source },
            None => ReadError::Io { path, line, source },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    fn lines(bytes: &[u8]) -> Result<Vec<(u64, String)>, ReadError> {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), bytes).unwrap();
        let mut reader = LineReader::open(file.path())?;
        let (mut all, mut text) = (Vec::new(), String::new());
        while let Some(line) = reader.next_line(&mut text)? {
            all.push((line.number, text.clone()));
        }
        Ok(all)
    }

    fn gzip(bytes: &[u8]) -> Vec<u8> {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), Default::default());
        encoder.write_all(bytes).unwrap();
        encoder.finish().unwrap()
    }

    const TEXT: &str = "{\"a\":1}\r\n\n  \n{\"b\":\"ä\"}";

    #[test]
    fn blank_lines_are_passed_over_but_counted() {
        let expected = vec![(1, "{\"a\":1}".to_owned()), (4, "{\"b\":\"ä\"}".to_owned())];
        assert_eq!(lines(TEXT.as_bytes()).unwrap(), expected);
        assert_eq!(lines(&gzip(TEXT.as_bytes())).unwrap(), expected);
        assert_eq!(lines(&zstd::encode_all(TEXT.as_bytes(), 3).unwrap()).unwrap(), expected);
    }

    #[test]
    fn a_byte_order_mark_is_dropped() {
        assert_eq!(lines(b"\xef\xbb\xbf{}\n").unwrap(), vec![(1, "{}".to_owned())]);
    }

    #[test]
    fn concatenated_compressed_streams_are_read_to_the_end() {
        let mut gz = gzip(b"one\n");
        gz.extend(gzip(b"two\n"));
        assert_eq!(lines(&gz).unwrap().len(), 2);
        let mut zst = zstd::encode_all(&b"one\n"[..], 3).unwrap();
        zst.extend(zstd::encode_all(&b"two\n"[..], 3).unwrap());
        assert_eq!(lines(&zst).unwrap().len(), 2);
    }

    #[test]
    fn a_truncated_stream_is_told_from_a_damaged_one() {
        let long: String = (0..20_000).map(|i| format!("{{\"row\":{}}}\n", i * 7919)).collect();
        for packed in [gzip(long.as_bytes()), zstd::encode_all(long.as_bytes(), 3).unwrap()] {
            let cut = lines(&packed[..packed.len() / 2]).unwrap_err();
            assert!(matches!(cut, ReadError::Truncated { .. }), "{cut}");
            let mut damaged = packed.clone();
            let middle = damaged.len() / 2;
            damaged[middle..middle + 64].fill(0xa5);
            let error = lines(&damaged).unwrap_err();
            assert!(
                matches!(error, ReadError::Corrupt { .. } | ReadError::NotUtf8 { .. }),
                "{error}"
            );
        }
    }

    #[test]
    fn invalid_utf8_is_named_with_line_and_byte() {
        let error = lines(b"{}\n{\"a\":\"\xff\"}\n").unwrap_err();
        assert!(matches!(error, ReadError::NotUtf8 { line: 2, column: 7, .. }), "{error}");
    }

    #[test]
    fn a_line_without_end_is_stopped_at_the_limit() {
        let bomb = zstd::encode_all(io::repeat(b'x').take(MAX_LINE_BYTES as u64 + 10), 1).unwrap();
        let error = lines(&bomb).unwrap_err();
        assert!(matches!(error, ReadError::LineTooLong { line: 1, .. }), "{error}");
        let longest = vec![b'x'; MAX_LINE_BYTES];
        assert_eq!(lines(&longest).unwrap()[0].1.len(), MAX_LINE_BYTES);
    }

    #[test]
    fn archives_and_folders_are_refused_by_name() {
        let error = lines(b"PK\x03\x04 and more").unwrap_err();
        assert!(error.to_string().contains("zip archive"), "{error}");
        let folder = tempfile::tempdir().unwrap();
        assert!(matches!(LineReader::open(folder.path()), Err(ReadError::Open { .. })));
    }
}
