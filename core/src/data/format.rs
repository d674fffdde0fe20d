//! From a JSON object to a [`Record`]: one variant per way in which data sets write their rows.

use serde_json::{Map, Value};

use super::finance::{self, FinanceSet};
use super::preference;
use super::record::{Content, Message, Record, Role};

/// Values longer than this are text, not something to partition by.
const MAX_FIELD_BYTES: usize = 256;

/// What is wrong with a row.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum RowFault {
    /// The line is no JSON.
    #[error("bad JSON: {message}; each line must hold one whole JSON object")]
    Json {
        /// What the parser says, with the column.
        message: String,
    },
    /// The line is JSON but no object.
    #[error("the line holds {found}, not a JSON object{}", if *found == "an array" { "; turn a JSON array into JSON Lines with `jq -c '.[]'`" } else { "" })]
    NotAnObject {
        /// What it is.
        found: &'static str,
    },
    /// A field is not there.
    #[error("field `{field}` is missing; the row has {present}")]
    Missing {
        /// The field.
        field: String,
        /// The fields that are there.
        present: String,
    },
    /// A field holds something else than it should.
    #[error("field `{field}` must be {expected}, but is {found}")]
    WrongType {
        /// The field.
        field: String,
        /// What it should be.
        expected: &'static str,
        /// What it is.
        found: &'static str,
    },
    /// A field has a value that the format does not know.
    #[error("field `{field}` is \"{value}\"; known are {known}")]
    UnknownValue {
        /// The field.
        field: String,
        /// Its value.
        value: String,
        /// What it may be.
        known: &'static str,
    },
    /// A conversation cannot be trained on.
    #[error("field `{field}`: {problem}")]
    Conversation {
        /// The field.
        field: String,
        /// What is wrong with it.
        problem: &'static str,
    },
}

/// Why a row that is well formed is not trained on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[non_exhaustive]
pub enum SkipReason {
    /// Chosen and rejected answer are the same: nothing can be learnt from them.
    SameAnswers,
    /// The two answers do not continue the same conversation.
    NoCommonPrompt,
    /// The same instruction came before (`math-instruct`, as OpenFedLLM does).
    Duplicate,
}

impl std::fmt::Display for SkipReason {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::SameAnswers => "chosen and rejected answer are the same",
            Self::NoCommonPrompt => "chosen and rejected have no common prompt",
            Self::Duplicate => "the instruction is a repetition",
        })
    }
}

/// A row that was understood.
#[derive(Debug, PartialEq)]
pub(super) enum Converted {
    Record(Content, Vec<(String, String)>),
    Skip(SkipReason),
}

/// Which fields hold an instruction and its answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct InstructionFields {
    pub instruction: String,
    /// Read where the row has it.
    pub input: Option<String>,
    pub response: String,
}

impl InstructionFields {
    pub fn new(instruction: &str, input: Option<&str>, response: &str) -> Self {
        Self {
            instruction: instruction.to_owned(),
            input: input.map(str::to_owned),
            response: response.to_owned(),
        }
    }
}

/// Which fields hold a preference.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct PreferenceFields {
    pub prompt: String,
    pub chosen: String,
    pub rejected: String,
}

/// How a file writes its rows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Format {
    /// An instruction, perhaps an input, and a response.
    Instruction(InstructionFields),
    /// A list of messages in the named field.
    Chat(String),
    /// Prompt, chosen and rejected, as strings or lists of messages.
    Preference(PreferenceFields),
    /// Anthropic's dialogues: `chosen` and `rejected` are whole conversations as one string.
    HhDialogue,
    /// One of the parts of FinGPT's sentiment set.
    Finance(FinanceSet),
}

impl Format {
    /// Understands the line `text`.
    pub fn convert(&self, text: &str) -> Result<Converted, RowFault> {
        let value: Value = serde_json::from_str(text).map_err(|error| {
            // A row is one line: the parser's own count of lines would only confuse.
            let message = error.to_string().replace(" at line 1 column ", " at column ");
            RowFault::Json { message }
        })?;
        let Value::Object(mut row) = value else {
            return Err(RowFault::NotAnObject { found: kind_of(&value) });
        };
        let row = &mut row;
        let content = match self {
            Self::Instruction(fields) => {
                let instruction = take_text(row, &fields.instruction)?;
                let input = match &fields.input {
                    Some(field) => take_optional_text(row, field)?,
                    None => None,
                };
                let response = take_text(row, &fields.response)?;
                Content::Instruction { instruction, input, response }
            }
            Self::Chat(field) => {
                let messages = parse_messages(take(row, field)?, field)?;
                if !messages.iter().any(|m| m.role == Role::Assistant) {
                    return Err(RowFault::Conversation {
                        field: field.clone(),
                        problem: "no turn is the assistant's, so there is nothing to learn",
                    });
                }
                Content::Chat { messages }
            }
            Self::Preference(fields) => match preference::from_fields(row, fields)? {
                Ok(content) => content,
                Err(reason) => return Ok(Converted::Skip(reason)),
            },
            Self::HhDialogue => {
                let chosen = take_text(row, "chosen")?;
                let rejected = take_text(row, "rejected")?;
                match preference::split_dialogues(&chosen, &rejected) {
                    Ok(content) => content,
                    Err(reason) => return Ok(Converted::Skip(reason)),
                }
            }
            Self::Finance(set) => finance::convert(*set, row)?,
        };
        Ok(Converted::Record(content, plain_fields(row)))
    }

    /// Rows that must not be torn apart between training and held-out rows have the same group.
    pub fn group(&self, record: &Record) -> String {
        match (&record.content, self) {
            // One sentence can stand in several rows, about several companies.
            (Content::Instruction { input: Some(sentence), .. }, Self::Finance(_)) => {
                sentence.clone()
            }
            (Content::Instruction { .. }, _) => record.question(),
            (Content::Chat { messages }, _) => messages
                .iter()
                .find(|m| m.role == Role::User)
                .map_or_else(String::new, |m| m.content.clone()),
            (Content::Preference { prompt, .. }, _) => {
                prompt.iter().map(|m| m.content.as_str()).collect::<Vec<_>>().join("\n")
            }
        }
    }
}

/// What kind of JSON value this is, in words.
pub(super) fn kind_of(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "true or false",
        Value::Number(_) => "a number",
        Value::String(_) => "a string",
        Value::Array(_) => "an array",
        Value::Object(_) => "an object",
    }
}

/// Takes `field` out of the row.
pub(super) fn take(row: &mut Map<String, Value>, field: &str) -> Result<Value, RowFault> {
    // What was taken stays there by name, for the error about a field that is missing.
    row.get_mut(field).map(Value::take).ok_or_else(|| RowFault::Missing {
        field: field.to_owned(),
        present: match row.len() {
            0 => "no fields".to_owned(),
            _ => row
                .keys()
                .map(|k| format!("`{}`", shorten(k)))
                .take(12)
                .collect::<Vec<_>>()
                .join(", "),
        },
    })
}

/// Takes a string out of the row.
pub(super) fn take_text(row: &mut Map<String, Value>, field: &str) -> Result<String, RowFault> {
    match take(row, field)? {
        Value::String(text) => Ok(text),
        other => Err(RowFault::WrongType {
            field: field.to_owned(),
            expected: "a string",
            found: kind_of(&other),
        }),
    }
}

/// Takes a string out of the row; `None` where it is missing, null or empty.
pub(super) fn take_optional_text(
    row: &mut Map<String, Value>,
    field: &str,
) -> Result<Option<String>, RowFault> {
    match row.get(field) {
        None | Some(Value::Null) => Ok(None),
        Some(_) => take_text(row, field).map(|text| Some(text).filter(|t| !t.is_empty())),
    }
}

/// A value as it stands in an error message.
pub(super) fn shorten(text: &str) -> String {
    match text.char_indices().nth(60) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text.to_owned(),
    }
}

/// Reads a list of turns: `role` and `content`, or ShareGPT's `from` and `value`.
pub(super) fn parse_messages(value: Value, field: &str) -> Result<Vec<Message>, RowFault> {
    let Value::Array(turns) = value else {
        return Err(RowFault::WrongType {
            field: field.to_owned(),
            expected: "a list of messages",
            found: kind_of(&value),
        });
    };
    let mut messages = Vec::with_capacity(turns.len());
    for (i, turn) in turns.into_iter().enumerate() {
        let at =
            |name: &str| format!("{field}[{i}]{}{name}", if name.is_empty() { "" } else { "." });
        let Value::Object(mut turn) = turn else {
            return Err(RowFault::WrongType {
                field: at(""),
                expected: "an object with `role` and `content`",
                found: kind_of(&turn),
            });
        };
        let share_gpt = !turn.contains_key("role") && turn.contains_key("from");
        let (role, content) = if share_gpt { ("from", "value") } else { ("role", "content") };
        let name = take_text(&mut turn, role).map_err(|e| e.within(&at("")))?;
        let content = take_text(&mut turn, content).map_err(|e| e.within(&at("")))?;
        let Some(role) = Role::from_name(&name) else {
            return Err(RowFault::UnknownValue {
                field: at(role),
                value: shorten(&name),
                known: "system, user (human) and assistant (gpt)",
            });
        };
        if role == Role::System && i > 0 {
            return Err(RowFault::Conversation {
                field: at(""),
                problem: "a system turn may stand only at the start",
            });
        }
        messages.push(Message { role, content });
    }
    Ok(messages)
}

impl RowFault {
    /// The same fault, of a field inside `outer`.
    fn within(self, outer: &str) -> Self {
        match self {
            Self::Missing { field, present } => {
                Self::Missing { field: format!("{outer}.{field}"), present }
            }
            Self::WrongType { field, expected, found } => {
                Self::WrongType { field: format!("{outer}.{field}"), expected, found }
            }
            other => other,
        }
    }
}

/// The short plain values that are left in the row.
fn plain_fields(row: &Map<String, Value>) -> Vec<(String, String)> {
    let plain = |value: &Value| match value {
        Value::String(text) if text.len() <= MAX_FIELD_BYTES => Some(text.clone()),
        Value::Number(number) => Some(number.to_string()),
        Value::Bool(flag) => Some(flag.to_string()),
        _ => None,
    };
    row.iter().filter_map(|(name, value)| Some((name.clone(), plain(value)?))).collect()
}
