//! MMLU: 57 subjects in four groups; and its six medical subjects as a suite of their own.

use std::collections::HashMap;

use serde::Deserialize;

use super::choice::{by_letter, lettered, mean_of_groups};
use super::numbered;
use crate::evaluate::data::DataFolder;
use crate::evaluate::suite::{
    Card, Graded, Item, Metric, Prompt, Scoring, Suite, SuiteError, SuiteOptions, Wrapping, means,
};

/// Group names and their subjects, as the authors' `categories.py` sorts them: anatomy belongs to
/// health and so to "other", where lm-evaluation-harness counts it in STEM.
const GROUPS: [(&str, &[&str]); 4] = [
    (
        "STEM",
        &[
            "abstract_algebra",
            "astronomy",
            "college_biology",
            "college_chemistry",
            "college_computer_science",
            "college_mathematics",
            "college_physics",
            "computer_security",
            "conceptual_physics",
            "electrical_engineering",
            "elementary_mathematics",
            "high_school_biology",
            "high_school_chemistry",
            "high_school_computer_science",
            "high_school_mathematics",
            "high_school_physics",
            "high_school_statistics",
            "machine_learning",
        ],
    ),
    (
        "humanities",
        &[
            "formal_logic",
            "high_school_european_history",
            "high_school_us_history",
            "high_school_world_history",
            "international_law",
            "jurisprudence",
            "logical_fallacies",
            "moral_disputes",
            "moral_scenarios",
            "philosophy",
            "prehistory",
            "professional_law",
            "world_religions",
        ],
    ),
    (
        "social sciences",
        &[
            "econometrics",
            "high_school_geography",
            "high_school_government_and_politics",
            "high_school_macroeconomics",
            "high_school_microeconomics",
            "high_school_psychology",
            "human_sexuality",
            "professional_psychology",
            "public_relations",
            "security_studies",
            "sociology",
            "us_foreign_policy",
        ],
    ),
    (
        "other",
        &[
            "anatomy",
            "business_ethics",
            "clinical_knowledge",
            "college_medicine",
            "global_facts",
            "human_aging",
            "management",
            "marketing",
            "medical_genetics",
            "miscellaneous",
            "nutrition",
            "professional_accounting",
            "professional_medicine",
            "virology",
        ],
    ),
];

/// The subjects used to evaluate medical knowledge.
const MEDICAL: [&str; 6] = [
    "anatomy",
    "clinical_knowledge",
    "college_biology",
    "college_medicine",
    "medical_genetics",
    "professional_medicine",
];

/// MMLU, all of it or the medical part.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mmlu {
    /// All 57 subjects.
    All,
    /// The six medical subjects.
    Medical,
}

#[derive(Deserialize)]
struct Row {
    subject: String,
    question: String,
    choice0: String,
    choice1: String,
    choice2: String,
    choice3: String,
    answer: usize,
}

impl Row {
    fn text(&self) -> String {
        let options = [&self.choice0, &self.choice1, &self.choice2, &self.choice3];
        format!("{}\n{}\nAnswer:", self.question.trim(), lettered(&options))
    }
}

fn group_of(subject: &str) -> Option<&'static str> {
    GROUPS.iter().find(|(_, subjects)| subjects.contains(&subject)).map(|(group, _)| *group)
}

impl Suite for Mmlu {
    fn card(&self) -> Card {
        let (name, family, about, parts): (_, _, _, &[&str]) = match self {
            Self::All => (
                "mmlu",
                "general",
                "57 subjects from school to profession, four options",
                &["group", "subject"],
            ),
            Self::Medical => {
                ("mmlu-medical", "medicine", "the six medical subjects of MMLU", &["subject"])
            }
        };
        Card {
            name,
            family,
            about,
            metrics: &["accuracy", "subject_mean_accuracy", "accuracy_norm"],
            parts,
            data: &["mmlu/test", "mmlu/dev (examples)"],
            scoring: Scoring::LogLikelihood,
            wrapping: Wrapping::Plain,
            shots: (0, 5),
        }
    }

    fn items(&self, data: &DataFolder, options: &SuiteOptions) -> Result<Vec<Item>, SuiteError> {
        let mut examples: HashMap<String, Vec<String>> = HashMap::new();
        if options.shots > 0 {
            for row in data.rows::<Row>("mmlu/dev")? {
                let shown = format!("{} {}\n\n", row.text(), super::choice::letter(row.answer));
                examples.entry(row.subject).or_default().push(shown);
            }
        }
        let questions = data.rows_with("mmlu/test", |row: Row| {
            if row.answer > 3 {
                return Err(format!("`answer` is {}, not 0 to 3", row.answer));
            }
            if *self == Self::Medical && !MEDICAL.contains(&row.subject.as_str()) {
                return Ok(None);
            }
            let mut groups = vec![format!("subject:{}", row.subject)];
            if *self == Self::All {
                groups.extend(group_of(&row.subject).map(|group| format!("group:{group}")));
            }
            let shown = examples.get(&row.subject).map_or(&[][..], Vec::as_slice);
            let shown = &shown[..shown.len().min(options.shots)];
            let text = format!(
                "The following are multiple choice questions (with answers) about {}.\n\n{}{}",
                row.subject.replace('_', " "),
                shown.concat(),
                row.text()
            );
            Ok(Some(((groups, by_letter(Prompt::same(text), 4, row.answer)), shown.len())))
        })?;
        let (questions, shots): (Vec<_>, Vec<_>) = questions.into_iter().flatten().unzip();
        let mut items = numbered(questions);
        items.iter_mut().zip(shots).for_each(|(item, shots)| item.shots = shots);
        Ok(items)
    }

    fn metrics(&self, graded: &[Graded], _options: &SuiteOptions) -> Vec<Metric> {
        let mut metrics = means(graded);
        metrics.extend(mean_of_groups(graded, "accuracy", "subject:", "subject_mean_accuracy"));
        metrics
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_subject_has_one_group() {
        let all: Vec<_> = GROUPS.iter().flat_map(|(_, subjects)| *subjects).collect();
        let distinct: std::collections::BTreeSet<_> = all.iter().collect();
        assert_eq!((all.len(), distinct.len()), (57, 57));
        assert!(MEDICAL.iter().all(|subject| group_of(subject).is_some()));
    }
}
