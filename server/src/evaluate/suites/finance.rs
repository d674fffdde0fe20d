//! Financial sentiment: FPB, FiQA-SA, TFNS and NWGI with FinGPT's prompts and classes.

use fleetune_core::data::{NEWS_INSTRUCTION, Sentiment, TWEET_INSTRUCTION, Template};
use serde::Deserialize;

use super::choice::{ACCURACY_AND_F1, with_f1};
use super::numbered;
use crate::evaluate::data::{DataError, DataFolder};
use crate::evaluate::suite::{
    Card, Choice, Graded, Item, Metric, Prompt, Scoring, Suite, SuiteError, SuiteOptions, Wrapping,
    Written,
};

/// The classes, in the order of the options.
const CLASSES: [Sentiment; 3] = [Sentiment::Negative, Sentiment::Neutral, Sentiment::Positive];

/// One of the four sets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Finance {
    /// Financial PhraseBank.
    Fpb,
    /// FiQA 2018 task 1.
    Fiqa,
    /// Twitter Financial News Sentiment.
    Tfns,
    /// News With GPT Instructions.
    Nwgi,
}

/// A sentence and its class.
struct Row {
    instruction: &'static str,
    sentence: String,
    sentiment: Sentiment,
    group: Option<String>,
}

#[derive(Deserialize)]
struct FpbRow {
    sentence: String,
    label: String,
}

#[derive(Deserialize)]
struct FiqaRow {
    sentence: String,
    sentiment_score: TextOrNumber,
    format: String,
}

/// A number, which the set's files write as text.
#[derive(Deserialize)]
#[serde(untagged)]
enum TextOrNumber {
    Text(String),
    Number(f64),
}

impl TextOrNumber {
    fn number(&self) -> Result<f64, String> {
        match self {
            Self::Number(number) => Ok(*number),
            Self::Text(text) => {
                text.parse().map_err(|_| format!("`sentiment_score` is {text:?}, not a number"))
            }
        }
    }
}

#[derive(Deserialize)]
struct TfnsRow {
    text: String,
    label: i64,
}

#[derive(Deserialize)]
struct NwgiRow {
    context: String,
    target: String,
}

impl Finance {
    fn file(self) -> &'static str {
        match self {
            Self::Fpb => "fpb/sentences_50agree",
            Self::Fiqa => "fiqa_sa/task1",
            Self::Tfns => "tfns/validation",
            Self::Nwgi => "nwgi/test",
        }
    }

    fn rows(self, data: &DataFolder) -> Result<Vec<Row>, DataError> {
        match self {
            Self::Fpb => data.rows_with(self.file(), |row: FpbRow| {
                let sentiment = class(&row.label)?;
                Ok::<_, String>(news(row.sentence, sentiment))
            }),
            Self::Fiqa => data.rows_with(self.file(), |row: FiqaRow| {
                let score = row.sentiment_score.number()?;
                let instruction = match row.format.as_str() {
                    "post" => TWEET_INSTRUCTION,
                    _ => NEWS_INSTRUCTION,
                };
                let sentiment = Sentiment::from_fiqa_score(score);
                let group = Some(format!("format:{}", row.format));
                Ok::<_, String>(Row { instruction, sentence: row.sentence, sentiment, group })
            }),
            Self::Tfns => data.rows_with(self.file(), |row: TfnsRow| {
                let sentiment = Sentiment::from_tfns_label(row.label)
                    .ok_or_else(|| format!("`label` is {}, not 0, 1 or 2", row.label))?;
                let instruction = TWEET_INSTRUCTION;
                Ok::<_, String>(Row { instruction, sentence: row.text, sentiment, group: None })
            }),
            Self::Nwgi => data.rows_with(self.file(), |row: NwgiRow| {
                let sentence = row.context.split_once("\nInput: ").map(|(_, rest)| rest);
                let sentence = sentence.and_then(|rest| rest.rsplit_once("\nAnswer:"));
                let (sentence, _) = sentence.ok_or("`context` has no lines Input: and Answer:")?;
                Ok::<_, String>(news(sentence.to_owned(), class(&row.target)?))
            }),
        }
    }
}

fn news(sentence: String, sentiment: Sentiment) -> Row {
    Row { instruction: NEWS_INSTRUCTION, sentence, sentiment, group: None }
}

/// The class of a label; FinGPT counts the mild grades of NWGI as neutral.
fn class(label: &str) -> Result<Sentiment, String> {
    Sentiment::from_name(label).ok_or_else(|| format!("{label:?} is no sentiment"))
}

/// FinGPT's reading of a free answer: what it does not recognise counts as neutral.
fn read_sentiment(answer: &str, _options: usize) -> Option<usize> {
    let has = |words: [&str; 2]| words.iter().any(|word| answer.contains(word));
    let sentiment = if has(["positive", "Pos"]) {
        Sentiment::Positive
    } else if has(["negative", "Neg"]) {
        Sentiment::Negative
    } else {
        Sentiment::Neutral
    };
    CLASSES.iter().position(|&class| class == sentiment)
}

fn question(row: &Row) -> Option<Choice> {
    let gold = CLASSES.iter().position(|&class| class == row.sentiment)?;
    let prompt = Prompt {
        plain: format!("Instruction: {}\nInput: {}\nAnswer:", row.instruction, row.sentence),
        // Instruction and input are joined as in training.
        message: format!("{} {}", row.instruction, row.sentence),
    };
    let written = Some(Written { prompt: prompt.clone(), read: read_sentiment });
    let options = CLASSES.iter().map(|class| class.name().to_owned()).collect();
    Some(Choice { prompt, options, gold, written })
}

impl Suite for Finance {
    fn card(&self) -> Card {
        let parts: &[&str] = if self == &Self::Fiqa { &["format"] } else { &[] };
        let (name, about, data): (_, _, &[&str]) = match self {
            Self::Fpb => (
                "fpb",
                "sentiment of news sentences (Financial PhraseBank)",
                &["fpb/sentences_50agree"],
            ),
            Self::Fiqa => {
                ("fiqa", "sentiment of headlines and posts (FiQA-SA)", &["fiqa_sa/task1"])
            }
            Self::Tfns => {
                ("tfns", "sentiment of tweets (Twitter Financial News)", &["tfns/validation"])
            }
            Self::Nwgi => {
                ("nwgi", "sentiment of news (News With GPT Instructions)", &["nwgi/test"])
            }
        };
        Card {
            name,
            family: "finance",
            about,
            metrics: ACCURACY_AND_F1,
            parts,
            data,
            scoring: Scoring::LogLikelihood,
            wrapping: Wrapping::In(Template::Alpaca),
            shots: (0, 0),
        }
    }

    fn items(&self, data: &DataFolder, _options: &SuiteOptions) -> Result<Vec<Item>, SuiteError> {
        let rows = self.rows(data)?;
        let ask = |row: &Row| Some((row.group.clone().into_iter().collect(), question(row)?));
        let mut items = numbered(rows.iter().filter_map(ask).collect());
        for (item, row) in items.iter_mut().zip(rows) {
            item.about = Some(row.sentence);
        }
        Ok(items)
    }

    fn metrics(&self, graded: &[Graded], options: &SuiteOptions) -> Vec<Metric> {
        with_f1(graded, options)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_are_read_as_fingpt_reads_them() {
        let read = |answer| read_sentiment(answer, 3).map(|class| CLASSES[class].name());
        assert_eq!(read(" Positive."), Some("positive"));
        assert_eq!(read("moderately negative"), Some("negative"));
        assert_eq!(read("I cannot say"), Some("neutral"));
        assert_eq!(read("neither positive nor negative"), Some("positive"));
    }

    #[test]
    fn the_question_is_fingpts() {
        let row = news("Profit rose.".to_owned(), Sentiment::Positive);
        let choice = question(&row).unwrap();
        assert_eq!(choice.options[choice.gold], "positive");
        assert!(choice.prompt.plain.ends_with("\nInput: Profit rose.\nAnswer:"));
    }
}
