//! Preference pairs out of the forms in which data sets publish them.

use serde_json::{Map, Value};

use super::format::{PreferenceFields, RowFault, SkipReason, kind_of, parse_messages, take};
use super::record::{Content, Message, Role};

const HUMAN: &str = "\n\nHuman:";
const ASSISTANT: &str = "\n\nAssistant:";

/// Splits two of Anthropic's dialogues at the start of the last assistant turn that both share.
///
/// OpenFedLLM splits at the first character that differs, which cuts the beginning off replies
/// that start alike; here replies stay whole. Everything after the split belongs to the reply, also
/// where one of the dialogues goes on for further turns.
pub(super) fn split_dialogues(chosen: &str, rejected: &str) -> Result<Content, SkipReason> {
    // Some copies of the release have their leading blank lines stripped.
    let (chosen, rejected) = (&with_lead(chosen), &with_lead(rejected));
    if chosen == rejected {
        return Err(SkipReason::SameAnswers);
    }
    let common = chosen.bytes().zip(rejected.bytes()).take_while(|(a, b)| a == b).count();
    let Some(mut rest) = chosen.strip_prefix(HUMAN) else {
        return Err(SkipReason::NoCommonPrompt);
    };
    let mut prompt = Vec::new();
    // The conversation before the last assistant turn found, and the byte where that turn starts.
    let mut split: Option<(usize, usize)> = None;
    let mut role = Role::User;
    loop {
        let marker = if role == Role::User { ASSISTANT } else { HUMAN };
        let Some(end) = rest.find(marker) else { break };
        let after = chosen.len() - rest.len() + end + marker.len();
        if after > common {
            break;
        }
        prompt.push(Message::new(role, without_lead(&rest[..end])));
        rest = &rest[end + marker.len()..];
        if role == Role::User {
            split = Some((prompt.len(), after));
            role = Role::Assistant;
        } else {
            role = Role::User;
        }
    }
    let Some((turns, at)) = split else { return Err(SkipReason::NoCommonPrompt) };
    prompt.truncate(turns);
    pair(prompt, without_lead(&chosen[at..]).to_owned(), without_lead(&rejected[at..]).to_owned())
}

fn with_lead(dialogue: &str) -> String {
    if dialogue.starts_with("Human:") { format!("\n\n{dialogue}") } else { dialogue.to_owned() }
}

/// Without the blank that separates a speaker's name from what is said.
fn without_lead(text: &str) -> &str {
    text.strip_prefix(' ').unwrap_or(text)
}

/// Reads prompt, chosen and rejected, each a string or a list of messages. Where the answers are
/// lists, they may repeat the prompt (as UltraFeedback binarised does) and the prompt may be absent.
pub(super) fn from_fields(
    row: &mut Map<String, Value>,
    fields: &PreferenceFields,
) -> Result<Result<Content, SkipReason>, RowFault> {
    let chosen = take_answer(row, &fields.chosen)?;
    let rejected = take_answer(row, &fields.rejected)?;
    let both_lists = matches!((&chosen, &rejected), (Answer::Turns(_), Answer::Turns(_)));
    let given = match row.get(&fields.prompt) {
        None | Some(Value::Null) if both_lists => None,
        _ => Some(take(row, &fields.prompt)?),
    };
    let mut prompt = match given {
        None => Vec::new(),
        Some(Value::String(text)) => vec![Message::new(Role::User, text)],
        Some(value @ Value::Array(_)) => parse_messages(value, &fields.prompt)?,
        Some(other) => {
            return Err(RowFault::WrongType {
                field: fields.prompt.clone(),
                expected: "a string or a list of messages",
                found: kind_of(&other),
            });
        }
    };
    let (chosen, rejected) = match (chosen, rejected) {
        (Answer::Turns(chosen), Answer::Turns(rejected)) => {
            let [chosen, rejected] = [(&chosen, &fields.chosen), (&rejected, &fields.rejected)]
                .map(|(turns, field)| split_answer(turns, field));
            let ((before, chosen), (other, rejected)) = (chosen?, rejected?);
            if before != other {
                return Ok(Err(SkipReason::NoCommonPrompt));
            }
            // The lists hold the whole conversation where they hold more than the answer.
            if !before.is_empty() && prompt.len() <= before.len() {
                prompt = before.to_vec();
            }
            (chosen.to_owned(), rejected.to_owned())
        }
        (chosen, rejected) => {
            (chosen.into_text(&fields.chosen)?, rejected.into_text(&fields.rejected)?)
        }
    };
    Ok(pair(prompt, chosen, rejected))
}

fn pair(prompt: Vec<Message>, chosen: String, rejected: String) -> Result<Content, SkipReason> {
    if chosen == rejected {
        return Err(SkipReason::SameAnswers);
    }
    match prompt.last() {
        Some(last) if last.role == Role::User && !last.content.trim().is_empty() => {
            Ok(Content::Preference { prompt, chosen, rejected })
        }
        _ => Err(SkipReason::NoCommonPrompt),
    }
}

enum Answer {
    Text(String),
    Turns(Vec<Message>),
}

impl Answer {
    fn into_text(self, field: &str) -> Result<String, RowFault> {
        match self {
            Self::Text(text) => Ok(text),
            Self::Turns(turns) => split_answer(&turns, field).map(|(_, text)| text.to_owned()),
        }
    }
}

fn take_answer(row: &mut Map<String, Value>, field: &str) -> Result<Answer, RowFault> {
    match take(row, field)? {
        Value::String(text) => Ok(Answer::Text(text)),
        value @ Value::Array(_) => parse_messages(value, field).map(Answer::Turns),
        other => Err(RowFault::WrongType {
            field: field.to_owned(),
            expected: "a string or a list of messages",
            found: kind_of(&other),
        }),
    }
}

/// The turns before the answer, and the answer.
fn split_answer<'a>(
    turns: &'a [Message],
    field: &str,
) -> Result<(&'a [Message], &'a str), RowFault> {
    match turns.split_last() {
        Some((last, before)) if last.role == Role::Assistant => Ok((before, &last.content)),
        _ => Err(RowFault::Conversation {
            field: field.to_owned(),
            problem: "the last turn must be the assistant's answer",
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use Role::{Assistant, User};

    fn conversation(content: Result<Content, SkipReason>) -> (Vec<(Role, String)>, String, String) {
        match content.unwrap() {
            Content::Preference { prompt, chosen, rejected } => {
                (prompt.into_iter().map(|m| (m.role, m.content)).collect(), chosen, rejected)
            }
            other => panic!("{other:?}"),
        }
    }

    fn owned(turns: &[(Role, &str)]) -> Vec<(Role, String)> {
        turns.iter().map(|(role, text)| (*role, (*text).to_owned())).collect()
    }

    #[test]
    fn replies_that_start_alike_keep_their_beginnings() {
        let (prompt, chosen, rejected) = conversation(split_dialogues(
            "\n\nHuman: Why?\n\nAssistant: Sure, because.",
            "\n\nHuman: Why?\n\nAssistant: Sure, but no.",
        ));
        assert_eq!(prompt, owned(&[(User, "Why?")]));
        assert_eq!((chosen.as_str(), rejected.as_str()), ("Sure, because.", "Sure, but no."));
    }

    #[test]
    fn an_empty_reply_still_shares_the_last_turn() {
        let (prompt, chosen, rejected) = conversation(split_dialogues(
            "\n\nHuman: a\n\nAssistant: b\n\nHuman: c\n\nAssistant:",
            "\n\nHuman: a\n\nAssistant: b\n\nHuman: c\n\nAssistant: d",
        ));
        assert_eq!(prompt, owned(&[(User, "a"), (Assistant, "b"), (User, "c")]));
        assert_eq!((chosen.as_str(), rejected.as_str()), ("", "d"));
    }

    #[test]
    fn dialogues_that_part_in_a_users_turn_split_at_the_assistants_turn_before() {
        let (prompt, chosen, rejected) = conversation(split_dialogues(
            "\n\nHuman: a\n\nAssistant: b\n\nHuman: c\n\nAssistant: d",
            "\n\nHuman: a\n\nAssistant: b\n\nHuman: e\n\nAssistant: f",
        ));
        assert_eq!(prompt, owned(&[(User, "a")]));
        assert_eq!(chosen, "b\n\nHuman: c\n\nAssistant: d");
        assert_eq!(rejected, "b\n\nHuman: e\n\nAssistant: f");
    }

    #[test]
    fn pairs_without_a_difference_or_a_common_prompt_are_told_apart() {
        let same = "\n\nHuman: a\n\nAssistant: b";
        assert_eq!(split_dialogues(same, same), Err(SkipReason::SameAnswers));
        let other = "\n\nHuman: x\n\nAssistant: b";
        assert_eq!(split_dialogues(same, other), Err(SkipReason::NoCommonPrompt));
        assert_eq!(split_dialogues("ä", "ö"), Err(SkipReason::NoCommonPrompt));
        assert_eq!(split_dialogues("", "\n\nHuman:"), Err(SkipReason::NoCommonPrompt));
    }

    fn fields(row: &str) -> Result<Result<Content, SkipReason>, RowFault> {
        let Value::Object(mut row) = serde_json::from_str(row).unwrap() else { panic!() };
        let names = PreferenceFields {
            prompt: "prompt".to_owned(),
            chosen: "chosen".to_owned(),
            rejected: "rejected".to_owned(),
        };
        from_fields(&mut row, &names)
    }

    #[test]
    fn strings_and_message_lists_give_the_same_pair() {
        let strings = fields(r#"{"prompt":"q","chosen":"a","rejected":"b"}"#).unwrap();
        let answer = |text| {
            format!(
                r#"[{{"role":"user","content":"q"}},{{"role":"assistant","content":"{text}"}}]"#
            )
        };
        for prompt in [r#""prompt":"q","#, ""] {
            let row = format!(r#"{{{prompt}"chosen":{},"rejected":{}}}"#, answer("a"), answer("b"));
            assert_eq!(fields(&row).unwrap(), strings);
        }
    }

    #[test]
    fn unusable_pairs_are_skipped_and_malformed_ones_are_errors() {
        let skip = |row| fields(row).unwrap().unwrap_err();
        assert_eq!(skip(r#"{"prompt":"q","chosen":"a","rejected":"a"}"#), SkipReason::SameAnswers);
        assert_eq!(
            skip(r#"{"prompt":" ","chosen":"a","rejected":"b"}"#),
            SkipReason::NoCommonPrompt
        );
        let lists = r#"{"chosen":[{"role":"user","content":"p"},{"role":"assistant","content":"a"}],
            "rejected":[{"role":"user","content":"q"},{"role":"assistant","content":"b"}]}"#;
        assert_eq!(skip(lists), SkipReason::NoCommonPrompt);
        assert!(matches!(
            fields(r#"{"prompt":"q","chosen":"a"}"#),
            Err(RowFault::Missing { field, .. }) if field == "rejected"
        ));
        assert!(matches!(
            fields(r#"{"prompt":"q","chosen":"a","rejected":7}"#),
            Err(RowFault::WrongType { field, .. }) if field == "rejected"
        ));
        assert!(matches!(
            fields(r#"{"chosen":"a","rejected":"b"}"#),
            Err(RowFault::Missing { field, .. }) if field == "prompt"
        ));
        let role = r#"{"prompt":"q","chosen":[{"role":"tool","content":"a"}],"rejected":"b"}"#;
        assert!(matches!(
            fields(role),
            Err(RowFault::UnknownValue { field, .. }) if field == "chosen[0].role"
        ));
    }
}
