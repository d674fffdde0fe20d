//! Rows of a data set, page by page, from the hub's server of rows.
//!
//! Pages collect in a hidden JSON Lines file beside the destination, so that an interrupted pull
//! goes on at the row where it ended.

use std::fs::{self, File, OpenOptions};
use std::io::{self, BufRead, BufReader, BufWriter, Write};
use std::path::{Path, PathBuf};

use serde::Deserialize;
use serde_json::{Map, Value};

use super::dataset::RowWriter;
use super::{Client, HubError};
use crate::progress::{Progress, Unit};

/// Rows of a page: the most that the server gives.
const PAGE: u64 = 100;

/// A split of a data set.
#[derive(Debug)]
pub(super) struct RowSource<'a> {
    pub repository: &'a str,
    /// Its configurations, one after the other.
    pub configs: &'a [&'a str],
    pub split: &'a str,
}

#[derive(Deserialize)]
struct Page {
    rows: Vec<PageRow>,
    num_rows_total: u64,
}

#[derive(Deserialize)]
struct PageRow {
    row_idx: u64,
    row: Map<String, Value>,
    #[serde(default)]
    truncated_cells: Vec<String>,
}

impl RowSource<'_> {
    /// Writes all rows to `destination`, a `.jsonl.zst`; returns how many they are.
    pub fn pull(&self, client: &Client, destination: &Path) -> Result<u64, HubError> {
        let mut parts = Vec::new();
        for config in self.configs {
            let name = destination.file_name().unwrap_or_default().to_string_lossy();
            let path = destination.with_file_name(format!(".{name}.{config}.part"));
            self.pull_config(client, config, &path)?;
            parts.push(path);
        }
        let mut out = RowWriter::create(destination)?;
        for part in &parts {
            copy(part, &mut out).map_err(HubError::file("read", part))?;
        }
        let rows = out.finish()?;
        for part in parts {
            fs::remove_file(&part).map_err(HubError::file("remove", &part))?;
        }
        Ok(rows)
    }

    fn url(&self, client: &Client, config: &str, offset: u64) -> String {
        format!(
            "{}/rows?dataset={}&config={config}&split={}&offset={offset}&length={PAGE}",
            client.rows_endpoint(),
            self.repository.replace('/', "%2F"),
            self.split
        )
    }

    fn pull_config(&self, client: &Client, config: &str, path: &Path) -> Result<(), HubError> {
        let mut part = Part::open(path)?;
        let mut progress: Option<Progress> = None;
        loop {
            client.check_interrupt()?;
            let url = self.url(client, config, part.rows);
            let page: Page = client.get_json(&url)?;
            let answer =
                |reason: &str| HubError::Answer { url: url.clone(), reason: reason.into() };
            let progress = progress.get_or_insert_with(|| {
                let label = format!("{} {config}", self.repository);
                let progress = Progress::new(label, Some(page.num_rows_total), Unit::Items("rows"));
                progress.resume_at(part.rows);
                progress
            });
            for row in &page.rows {
                if row.row_idx != part.rows {
                    return Err(answer("the rows do not follow on each other"));
                }
                if !row.truncated_cells.is_empty() {
                    return Err(answer(
                        "the server cuts a row short, so the set would be incomplete",
                    ));
                }
                part.append(&row.row)?;
                progress.advance(1);
            }
            part.flush()?;
            if part.rows >= page.num_rows_total {
                return Ok(());
            }
            if page.rows.is_empty() {
                return Err(answer("the server has fewer rows than it says"));
            }
        }
    }
}

fn copy(part: &Path, out: &mut RowWriter) -> io::Result<()> {
    for line in BufReader::new(File::open(part)?).lines() {
        out.write(&serde_json::from_str(&line?)?)?;
    }
    Ok(())
}

/// Rows that have arrived, one a line.
struct Part {
    path: PathBuf,
    file: BufWriter<File>,
    rows: u64,
}

impl Part {
    /// Opens the file, cutting off a row that a kill tore.
    fn open(path: &Path) -> Result<Self, HubError> {
        let open = || -> io::Result<(File, u64)> {
            let file = OpenOptions::new().read(true).append(true).create(true).open(path)?;
            let mut reader = BufReader::new(&file);
            let (mut rows, mut whole, mut line) = (0, 0, Vec::new());
            loop {
                line.clear();
                let length = reader.read_until(b'\n', &mut line)?;
                if line.pop() != Some(b'\n')
                    || serde_json::from_slice::<Map<String, Value>>(&line).is_err()
                {
                    break;
                }
                rows += 1;
                whole += length as u64;
            }
            file.set_len(whole)?;
            Ok((file, rows))
        };
        let (file, rows) = open().map_err(HubError::file("open", path))?;
        Ok(Self { path: path.to_owned(), file: BufWriter::new(file), rows })
    }

    fn append(&mut self, row: &Map<String, Value>) -> Result<(), HubError> {
        let line = serde_json::to_string(row).map_err(io::Error::from);
        line.and_then(|line| writeln!(self.file, "{line}"))
            .map_err(HubError::file("write", &self.path))?;
        self.rows += 1;
        Ok(())
    }

    fn flush(&mut self) -> Result<(), HubError> {
        self.file.flush().map_err(HubError::file("write", &self.path))
    }
}
