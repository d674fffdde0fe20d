//! The suites, one file a suite or family.

mod advbench;
mod bbh;
mod big_bench;
mod choice;
mod drop;
mod finance;
mod humaneval;
mod humanevalpack;
mod mathematics;
mod medicine;
mod mmlu;
mod open_ended;

use rand::SeedableRng;
use rand::seq::SliceRandom;
use rand_chacha::ChaCha8Rng;

use super::suite::{Choice, Item, Question, Suite};

/// All suites, in the order of listings.
pub fn all() -> Vec<Box<dyn Suite>> {
    use finance::Finance;
    use humanevalpack::HumanEvalPack;
    use open_ended::OpenEnded;
    vec![
        Box::new(Finance::Fpb),
        Box::new(Finance::Fiqa),
        Box::new(Finance::Tfns),
        Box::new(Finance::Nwgi),
        Box::new(medicine::MedQa),
        Box::new(medicine::MedMcqa),
        Box::new(medicine::PubMedQa),
        Box::new(mmlu::Mmlu::Medical),
        Box::new(mmlu::Mmlu::All),
        Box::new(bbh::Bbh),
        Box::new(drop::Drop),
        Box::new(big_bench::Crass),
        Box::new(big_bench::Hhh),
        Box::new(mathematics::Gsm8k),
        Box::new(mathematics::CompetitionMath),
        Box::new(humaneval::HumanEval),
        Box::new(HumanEvalPack::Synthesize),
        Box::new(HumanEvalPack::Fix),
        Box::new(HumanEvalPack::Explain),
        Box::new(OpenEnded::Mt),
        Box::new(OpenEnded::Vicuna),
        Box::new(advbench::AdvBench),
        Box::new(OpenEnded::FedLlm),
    ]
}

/// No suite or family has this name.
#[derive(Debug, thiserror::Error)]
#[error("there is no suite {0:?}: `fleetune eval --list` shows all")]
pub struct UnknownSuite(String);

/// The suites that names ask for: of suites, of families (`finance`), or `all`; each once.
///
/// # Errors
/// When a name is no suite's or family's.
pub fn named(names: &[String]) -> Result<Vec<Box<dyn Suite>>, UnknownSuite> {
    let mut suites = Vec::new();
    let mut remaining = all();
    let known: Vec<_> = remaining.iter().map(|suite| suite.card()).collect();
    for name in names {
        let is_asked =
            |card: &super::suite::Card| name == "all" || card.name == name || card.family == name;
        if !known.iter().any(is_asked) {
            return Err(UnknownSuite(name.clone()));
        }
        suites.extend(remaining.extract_if(.., |suite| is_asked(&suite.card())));
    }
    Ok(suites)
}

/// Multiple-choice items, numbered in order.
fn numbered(questions: Vec<(Vec<String>, Choice)>) -> Vec<Item> {
    let items = questions.into_iter().enumerate().map(|(number, (groups, choice))| Item {
        id: number.to_string(),
        groups,
        about: None,
        shots: 0,
        question: Question::Choice(choice),
    });
    items.collect()
}

/// A seeded draw of `count` rows, as examples for a prompt.
fn drawn<T>(mut rows: Vec<T>, count: usize, seed: u64) -> Vec<T> {
    rows.shuffle(&mut ChaCha8Rng::seed_from_u64(seed));
    rows.truncate(count);
    rows
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(asked: &[&str]) -> Vec<&'static str> {
        let asked: Vec<String> = asked.iter().map(|name| (*name).to_owned()).collect();
        named(&asked).unwrap().iter().map(|suite| suite.card().name).collect()
    }

    #[test]
    fn suites_are_asked_for_by_name_and_family_and_come_once() {
        assert_eq!(names(&["gsm8k"]), ["gsm8k"]);
        assert_eq!(names(&["tfns", "finance"]), ["tfns", "fpb", "fiqa", "nwgi"]);
        assert_eq!(names(&["all"]).len(), all().len());
        assert!(named(&["glue".to_owned()]).is_err());
    }

    #[test]
    fn names_of_suites_and_families_are_distinct() {
        let mut names: Vec<_> = all().iter().map(|suite| suite.card().name).collect();
        let families: std::collections::BTreeSet<_> =
            all().iter().map(|suite| suite.card().family).collect();
        names.extend(families);
        let distinct: std::collections::BTreeSet<_> = names.iter().collect();
        assert_eq!(distinct.len(), names.len());
    }
}
