//! The data sets that are known by name, and where their rows are.

use std::path::{Path, PathBuf};

use super::finance::FinanceSet;
use super::format::{Format, InstructionFields, PreferenceFields};

/// A data set that is known by name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NamedSet {
    /// The name by which users choose it.
    pub name: &'static str,
    /// The folder below `--data-dir` that holds its own files; empty for the generic formats, which
    /// are always read from a named file.
    pub folder: &'static str,
    /// One line on what it is.
    pub description: &'static str,
    /// Whether its rows are preference pairs (for `--task dpo`).
    pub preference: bool,
    /// Name of the data set embedded in the program.
    pub(super) embedded: bool,
}

const fn set(name: &'static str, folder: &'static str, description: &'static str) -> NamedSet {
    NamedSet { name, folder, description, preference: false, embedded: false }
}

const fn pairs(name: &'static str, folder: &'static str, description: &'static str) -> NamedSet {
    NamedSet { preference: true, ..set(name, folder, description) }
}

/// Every data set that is known by name.
pub const NAMED_SETS: &[NamedSet] = &[
    NamedSet {
        embedded: true,
        ..set("demo", "", "eight small skills, one for each client group; part of the program")
    },
    set("alpaca", "alpaca", "Stanford Alpaca: instructions with answers by text-davinci-003"),
    set("alpaca-gpt4", "alpaca_gpt4", "Alpaca's instructions with answers by GPT-4"),
    set("fingpt", "fingpt", "FinGPT's financial sentiment, out of FPB, FiQA-SA, TFNS and NWGI"),
    set("medalpaca", "medical_meadow", "Medical Meadow of MedAlpaca: medical questions"),
    set("code-alpaca", "code_alpaca", "Code Alpaca: programming instructions"),
    set("math-instruct", "math_instruct", "MathInstruct; GSM8K and MATH where it is not there"),
    pairs("ultrafeedback", "ultrafeedback_binarized", "UltraFeedback, binarised: preference pairs"),
    pairs("hh-rlhf", "hh_rlhf", "Anthropic HH-RLHF: helpful and harmless preference pairs"),
    set("gsm8k", "gsm8k", "GSM8K train split: grade-school mathematics with worked answers"),
    set("math", "math", "MATH train split: competition mathematics with worked answers"),
    set("instruction", "", "your rows: `instruction`, optional `input`, `response`"),
    set("chat", "", "your rows: `messages`, a list of `role` and `content`"),
    pairs("preference", "", "your rows: `prompt`, `chosen`, `rejected`"),
];

/// The set called `name`.
pub fn named_set(name: &str) -> Option<&'static NamedSet> {
    NAMED_SETS.iter().find(|set| set.name == name)
}

/// Files of one kind in one folder.
pub(super) struct Files {
    pub folder: &'static str,
    /// Names without extension; those that are there are read, and one must be.
    pub stems: &'static [&'static str],
    pub format: Format,
    /// What `source` says of their rows; the file's stem where it says nothing.
    pub source: Option<&'static str>,
}

fn alpaca_rows() -> Format {
    Format::Instruction(InstructionFields::new("instruction", Some("input"), "output"))
}

fn gsm8k_rows() -> Format {
    Format::Instruction(InstructionFields::new("question", None, "answer"))
}

fn math_rows() -> Format {
    Format::Instruction(InstructionFields::new("problem", None, "solution"))
}

fn finance(folder: &'static str, stems: &'static [&'static str], set: FinanceSet) -> Files {
    Files { folder, stems, format: Format::Finance(set), source: Some(folder) }
}

impl NamedSet {
    /// Whether the set's rows are part of the program or below `data_dir`.
    pub fn is_here(&self, data_dir: &Path) -> bool {
        self.embedded || self.find(data_dir).is_ok()
    }

    /// How the set's own files write their rows. `None` for the generic formats, whose fields can
    /// be mapped, and for the demo set.
    pub(super) fn own_format(&self) -> Option<Format> {
        Some(match self.name {
            "alpaca" | "alpaca-gpt4" | "code-alpaca" | "math-instruct" => alpaca_rows(),
            "fingpt" => Format::Finance(FinanceSet::Assembled),
            // The instruction is the same on every row; OpenFedLLM drops it too.
            "medalpaca" => Format::Instruction(InstructionFields::new("input", None, "output")),
            "ultrafeedback" => Format::Preference(PreferenceFields {
                prompt: "prompt".to_owned(),
                chosen: "chosen".to_owned(),
                rejected: "rejected".to_owned(),
            }),
            "hh-rlhf" => Format::HhDialogue,
            "gsm8k" => gsm8k_rows(),
            "math" => math_rows(),
            _ => return None,
        })
    }

    /// Names, without extension, of the set's own files.
    fn own_stems(&self) -> &'static [&'static str] {
        match self.name {
            "code-alpaca" => &["train", "code_alpaca_2k", "new_codealpaca"],
            "medalpaca" => &["train", "medical_flashcards", "wikidoc_patient_information"],
            "hh-rlhf" => &["train", "helpful_base", "harmless_base"],
            _ => &["train"],
        }
    }

    /// What takes the set's place where it is not there itself. All of it must be there.
    fn parts(&self) -> Vec<Files> {
        match self.name {
            "fingpt" => vec![
                finance("fpb", &["sentences_50agree"], FinanceSet::Fpb),
                finance("fiqa_sa", &["task1"], FinanceSet::Fiqa),
                finance("tfns", &["train"], FinanceSet::Tfns),
                finance("nwgi", &["train", "test"], FinanceSet::Nwgi),
            ],
            "math-instruct" => [("gsm8k", gsm8k_rows()), ("math", math_rows())]
                .into_iter()
                .map(|(folder, format)| Files {
                    folder,
                    stems: &["train"],
                    format,
                    source: Some(folder),
                })
                .collect(),
            _ => Vec::new(),
        }
    }

    /// The files of the set below `data_dir`, each with its format and the `source` of its rows.
    /// On failure, the folders in which something was looked for in vain.
    pub(super) fn find(
        &self,
        data_dir: &Path,
    ) -> Result<Vec<(PathBuf, Format, String)>, Vec<PathBuf>> {
        let own = self.own_format().map(|format| Files {
            folder: self.folder,
            stems: self.own_stems(),
            format,
            source: None,
        });
        let own = own.map(|files| (files.find(data_dir), files));
        if let Some((found, files)) = &own
            && !found.is_empty()
        {
            return Ok(files.describe(found));
        }
        let mut missing: Vec<_> = own.iter().map(|(_, f)| data_dir.join(f.folder)).collect();
        let mut all = Vec::new();
        let parts = self.parts();
        for part in &parts {
            let found = part.find(data_dir);
            if found.is_empty() {
                missing.push(data_dir.join(part.folder));
            }
            all.extend(part.describe(&found));
        }
        let complete = !parts.is_empty() && missing.len() <= usize::from(own.is_some());
        if complete { Ok(all) } else { Err(missing) }
    }
}

impl Files {
    fn find(&self, data_dir: &Path) -> Vec<PathBuf> {
        let folder = data_dir.join(self.folder);
        self.stems.iter().filter_map(|stem| find_stem(&folder, stem)).collect()
    }

    fn describe(&self, found: &[PathBuf]) -> Vec<(PathBuf, Format, String)> {
        let source = |path: &Path| self.source.map_or_else(|| stem_of(path), str::to_owned);
        found.iter().map(|path| (path.clone(), self.format.clone(), source(path))).collect()
    }
}

/// The file `stem` with one of the extensions that data files have.
fn find_stem(folder: &Path, stem: &str) -> Option<PathBuf> {
    ["jsonl.zst", "jsonl.gz", "jsonl"]
        .iter()
        .map(|extension| folder.join(format!("{stem}.{extension}")))
        .find(|path| path.is_file())
}

/// A file's name up to its first dot.
pub(super) fn stem_of(path: &Path) -> String {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    name.split('.').find(|part| !part.is_empty()).unwrap_or("rows").to_owned()
}
