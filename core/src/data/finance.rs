//! FinGPT's sentiment instruction set, put together from its four parents.
//!
//! The prompts and labels are those of FinGPT's own data preparation. Three of the sets have the
//! classes negative, neutral and positive. News With GPT Instructions keeps its seven grades and its
//! own prompt in FinGPT's training set, and so it does here; its field `label`, by which clients are
//! partitioned, is the class to which FinGPT's benchmark maps the grade (*mildly* counts as neutral).

use serde_json::{Map, Value};

use super::format::{RowFault, kind_of, shorten, take, take_text};
use super::record::Content;

/// FinGPT's instruction for news headlines.
pub const NEWS_INSTRUCTION: &str =
    "What is the sentiment of this news? Please choose an answer from {negative/neutral/positive}.";
/// FinGPT's instruction for posts and tweets.
pub const TWEET_INSTRUCTION: &str = "What is the sentiment of this tweet? Please choose an answer from {negative/neutral/positive}.";

/// A parent of the set.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum FinanceSet {
    /// Financial PhraseBank.
    Fpb,
    /// FiQA 2018 task 1.
    Fiqa,
    /// Twitter Financial News Sentiment.
    Tfns,
    /// News With GPT Instructions.
    Nwgi,
    /// Rows that FinGPT has put together already (`instruction`, `input`, `output`).
    Assembled,
}

/// A sentiment class.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Sentiment {
    /// Bad news.
    Negative,
    /// Neither.
    Neutral,
    /// Good news.
    Positive,
}

impl Sentiment {
    /// The class's name, which is also the answer to learn.
    pub fn name(self) -> &'static str {
        match self {
            Self::Negative => "negative",
            Self::Neutral => "neutral",
            Self::Positive => "positive",
        }
    }

    /// The class called `name`, or the class of one of the seven grades of News With GPT
    /// Instructions, as FinGPT's benchmark maps them.
    pub fn from_name(name: &str) -> Option<Self> {
        match name.trim().to_ascii_lowercase().as_str() {
            "negative" | "strong negative" | "moderately negative" => Some(Self::Negative),
            "neutral" | "mildly negative" | "mildly positive" => Some(Self::Neutral),
            "positive" | "strong positive" | "moderately positive" => Some(Self::Positive),
            _ => None,
        }
    }

    /// The class of a FiQA score in [-1, 1]: positive from 0.1, negative below -0.1.
    pub fn from_fiqa_score(score: f64) -> Self {
        if score >= 0.1 {
            Self::Positive
        } else if score < -0.1 {
            Self::Negative
        } else {
            Self::Neutral
        }
    }

    /// The class of a label of Twitter Financial News Sentiment: bearish, bullish, neutral.
    pub fn from_tfns_label(label: i64) -> Option<Self> {
        match label {
            0 => Some(Self::Negative),
            1 => Some(Self::Positive),
            2 => Some(Self::Neutral),
            _ => None,
        }
    }
}

/// Takes the text out of `row` and puts the class in as its `label`.
pub(super) fn convert(set: FinanceSet, row: &mut Map<String, Value>) -> Result<Content, RowFault> {
    let (instruction, sentence, sentiment, answer) = match set {
        FinanceSet::Fpb => {
            let sentiment = class(take_text(row, "label")?, "label")?;
            let sentence = take_text(row, "sentence")?;
            (NEWS_INSTRUCTION.to_owned(), sentence, sentiment, sentiment.name().to_owned())
        }
        FinanceSet::Fiqa => {
            let sentiment = Sentiment::from_fiqa_score(score(take(row, "sentiment_score")?)?);
            let format = take_text(row, "format")?;
            let instruction = match format.as_str() {
                "headline" => NEWS_INSTRUCTION,
                "post" => TWEET_INSTRUCTION,
                _ => {
                    return Err(RowFault::UnknownValue {
                        field: "format".to_owned(),
                        value: shorten(&format),
                        known: "headline and post",
                    });
                }
            };
            row.insert("format".to_owned(), Value::String(format));
            let sentence = take_text(row, "sentence")?;
            (instruction.to_owned(), sentence, sentiment, sentiment.name().to_owned())
        }
        FinanceSet::Tfns => {
            let label = take(row, "label")?;
            let sentiment = label.as_i64().and_then(Sentiment::from_tfns_label);
            let sentiment = sentiment.ok_or_else(|| RowFault::UnknownValue {
                field: "label".to_owned(),
                value: shorten(&label.to_string()),
                known: "0 (bearish), 1 (bullish) and 2 (neutral)",
            })?;
            let text = take_text(row, "text")?;
            (TWEET_INSTRUCTION.to_owned(), text, sentiment, sentiment.name().to_owned())
        }
        FinanceSet::Nwgi => {
            let context = take_text(row, "context")?;
            let (instruction, news) = split_context(&context).ok_or(RowFault::Conversation {
                field: "context".to_owned(),
                problem: "expected `Instruction: …`, a line `Input: …` and a line `Answer:`",
            })?;
            let grade = take_text(row, "target")?;
            let sentiment = class(grade.clone(), "target")?;
            row.insert("grade".to_owned(), Value::String(grade.clone()));
            (instruction.to_owned(), news.to_owned(), sentiment, grade)
        }
        FinanceSet::Assembled => {
            let answer = take_text(row, "output")?;
            let sentiment = class(answer.clone(), "output")?;
            let instruction = take_text(row, "instruction")?;
            (instruction, take_text(row, "input")?, sentiment, answer)
        }
    };
    row.insert("label".to_owned(), Value::String(sentiment.name().to_owned()));
    Ok(Content::Instruction {
        instruction,
        input: Some(sentence).filter(|s| !s.is_empty()),
        response: answer,
    })
}

/// Splits a row's prompt `Instruction: … \nInput: … \nAnswer:` into instruction and input.
fn split_context(context: &str) -> Option<(&str, &str)> {
    let rest = context.strip_prefix("Instruction: ")?;
    let (instruction, rest) = rest.split_once("\nInput: ")?;
    let (input, _) = rest.rsplit_once("\nAnswer:")?;
    Some((instruction, input))
}

fn class(name: String, field: &str) -> Result<Sentiment, RowFault> {
    Sentiment::from_name(&name).ok_or_else(|| RowFault::UnknownValue {
        field: field.to_owned(),
        value: shorten(&name),
        known: "negative, neutral, positive and the seven grades from strong negative to strong positive",
    })
}

/// FiQA writes its scores as strings.
fn score(value: Value) -> Result<f64, RowFault> {
    let score = match &value {
        Value::Number(number) => number.as_f64(),
        Value::String(text) => text.trim().parse().ok(),
        _ => None,
    };
    score.filter(|s| (-1.0..=1.0).contains(s)).ok_or_else(|| RowFault::WrongType {
        field: "sentiment_score".to_owned(),
        expected: "a number from -1 to 1",
        found: match kind_of(&value) {
            "a number" => "another number",
            "a string" => "another string",
            other => other,
        },
    })
}
