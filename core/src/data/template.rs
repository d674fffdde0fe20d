//! The text that surrounds a row: what the model reads and which part of it is to be learnt.
//!
//! `alpaca` and `vicuna` are OpenFedLLM's, to the last blank. Their mask is OpenFedLLM's too:
//! everything up to and including the *last* occurrence of the template's response marker is not
//! learnt, so an answer that itself contains the marker is learnt from there on.

use std::fmt;
use std::ops::Range;
use std::str::FromStr;

use super::record::{Content, Message, Record, Role, join_input};

const ALPACA_HEAD: &str = "Below is an instruction that describes a task. Write a response that appropriately completes the request.\n\n### Instruction:\n";
const ALPACA_RESPONSE: &str = " \n\n### Response:";
const ALPACA_MARKER: &str = "\n### Response:";
const VICUNA_SYSTEM: &str = "A chat between a curious user and an artificial intelligence assistant. The assistant gives helpful, detailed, and polite answers to the user's questions.";
const VICUNA_MARKER: &str = " ASSISTANT:";
/// What ends an assistant turn inside a prompt in FastChat's `vicuna_v1.1`, whatever the model.
const VICUNA_TURN_END: &str = "</s>";

/// How rows become text.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Template {
    /// Stanford Alpaca's template as OpenFedLLM writes it; one instruction, one response.
    Alpaca,
    /// Vicuna v1.1's conversation.
    Vicuna,
    /// The chat template that comes with the model.
    Chat,
}

impl Template {
    /// All templates.
    pub const ALL: [Self; 3] = [Self::Alpaca, Self::Vicuna, Self::Chat];

    /// The name by which users choose it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Alpaca => "alpaca",
            Self::Vicuna => "vicuna",
            Self::Chat => "chat",
        }
    }
}

impl fmt::Display for Template {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// There is no template of this name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("there is no template \"{0}\"; choose alpaca, vicuna or chat")]
pub struct UnknownTemplate(String);

impl FromStr for Template {
    type Err = UnknownTemplate;

    fn from_str(name: &str) -> Result<Self, Self::Err> {
        Self::ALL
            .into_iter()
            .find(|t| t.name() == name)
            .ok_or_else(|| UnknownTemplate(name.to_owned()))
    }
}

/// A text of which parts are learnt.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Block {
    pub text: String,
    /// Byte ranges of what is learnt.
    pub learnt: Vec<Range<usize>>,
    /// Whether the model's end token follows, learnt too.
    pub end: bool,
}

/// A prompt and how an answer continues it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct PairText {
    pub prompt: String,
    pub chosen: String,
    pub rejected: String,
    /// Whether the model's end token follows the answers; it is part of the text otherwise.
    pub end: bool,
}

/// A row's conversation, whatever its form. A preference gives its prompt.
pub(super) fn conversation(record: &Record) -> Vec<Message> {
    match &record.content {
        Content::Instruction { instruction, input, response } => vec![
            Message::new(Role::User, join_input(instruction, input.as_deref())),
            Message::new(Role::Assistant, response.clone()),
        ],
        Content::Chat { messages } | Content::Preference { prompt: messages, .. } => {
            messages.clone()
        }
    }
}

/// The question of a conversation that Alpaca's template can hold: one user turn, and after it
/// nothing or one answer.
fn single_question(messages: &[Message]) -> Option<&str> {
    match messages {
        [user] if user.role == Role::User => Some(&user.content),
        [user, answer] if user.role == Role::User && answer.role == Role::Assistant => {
            Some(&user.content)
        }
        _ => None,
    }
}

/// Alpaca's text up to the response, or `None` where there is more than one question.
pub(super) fn alpaca_prompt(messages: &[Message]) -> Option<String> {
    Some(format!("{ALPACA_HEAD}{}{ALPACA_RESPONSE}", single_question(messages)?))
}

/// Alpaca's text with the response, or `None` where the template cannot hold the conversation.
pub(super) fn alpaca_block(messages: &[Message]) -> Option<Block> {
    let [_, answer] = messages else { return None };
    let mut text = alpaca_prompt(messages)?;
    let response = text.len();
    text.push(' ');
    text.push_str(&answer.content);
    let start = after_last(&text, ALPACA_MARKER).unwrap_or(response);
    let learnt = std::iter::once(start..text.len()).collect();
    Some(Block { text, learnt, end: true })
}

/// Vicuna's text up to the answer that follows the last message.
pub(super) fn vicuna_prompt(messages: &[Message]) -> String {
    let (system, turns) = vicuna_system(messages);
    let mut text = format!("{system} ");
    for message in turns {
        text.push_str(vicuna_name(message.role));
        text.push_str(": ");
        text.push_str(&message.content);
        text.push_str(if message.role == Role::Assistant { VICUNA_TURN_END } else { " " });
    }
    text.push_str(vicuna_name(Role::Assistant));
    text.push(':');
    text
}

/// Vicuna's text, one block for each answer. Turns after the last answer are left out.
pub(super) fn vicuna_blocks(messages: &[Message]) -> Vec<Block> {
    let (system, turns) = vicuna_system(messages);
    let mut blocks = Vec::new();
    let mut text = format!("{system} ");
    for message in turns {
        text.push_str(vicuna_name(message.role));
        text.push(':');
        let answer = text.len();
        text.push(' ');
        text.push_str(&message.content);
        if message.role == Role::Assistant {
            let start = after_last(&text, VICUNA_MARKER).unwrap_or(answer);
            let learnt = std::iter::once(start..text.len()).collect();
            blocks.push(Block { text: std::mem::take(&mut text), learnt, end: true });
        } else {
            text.push(' ');
        }
    }
    blocks
}

/// A system turn of the conversation's own takes the place of Vicuna's.
fn vicuna_system(messages: &[Message]) -> (&str, &[Message]) {
    match messages.split_first() {
        Some((first, turns)) if first.role == Role::System => (&first.content, turns),
        _ => (VICUNA_SYSTEM, messages),
    }
}

fn vicuna_name(role: Role) -> &'static str {
    match role {
        Role::Assistant => "ASSISTANT",
        Role::User | Role::System => "USER",
    }
}

fn after_last(text: &str, marker: &str) -> Option<usize> {
    text.rfind(marker).map(|at| at + marker.len())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn turns(turns: &[(Role, &str)]) -> Vec<Message> {
        turns.iter().map(|(role, text)| Message::new(*role, *text)).collect()
    }

    fn learnt(block: &Block) -> Vec<&str> {
        block.learnt.iter().map(|range| &block.text[range.clone()]).collect()
    }

    #[test]
    fn alpaca_learns_the_response_after_the_last_marker() {
        let block =
            alpaca_block(&turns(&[(Role::User, "Say\n### Response: x"), (Role::Assistant, "hi")]));
        assert_eq!(learnt(&block.unwrap()), [" hi"]);
        let answer = "first \n\n### Response: second";
        let block = alpaca_block(&turns(&[(Role::User, ""), (Role::Assistant, answer)])).unwrap();
        assert_eq!(learnt(&block), [" second"]);
        let block = alpaca_block(&turns(&[(Role::User, "a"), (Role::Assistant, "")])).unwrap();
        assert_eq!(learnt(&block), [" "]);
    }

    #[test]
    fn alpaca_has_no_form_for_several_turns_or_a_system_turn() {
        use Role::{Assistant, System, User};
        assert!(alpaca_block(&turns(&[(System, "s"), (User, "u"), (Assistant, "a")])).is_none());
        assert!(alpaca_block(&turns(&[(User, "u"), (Assistant, "a"), (User, "v")])).is_none());
        assert!(alpaca_block(&[]).is_none());
    }

    #[test]
    fn vicuna_learns_every_answer_of_a_conversation() {
        use Role::{Assistant, System, User};
        let blocks = vicuna_blocks(&turns(&[
            (System, "Be brief."),
            (User, "one"),
            (Assistant, "1"),
            (User, "two"),
            (Assistant, "2"),
            (User, "three"),
        ]));
        assert_eq!(blocks[0].text, "Be brief. USER: one ASSISTANT: 1");
        assert_eq!(blocks[1].text, "USER: two ASSISTANT: 2");
        assert_eq!(blocks.iter().map(learnt).collect::<Vec<_>>(), [[" 1"], [" 2"]]);
    }

    #[test]
    fn template_names_are_checked() {
        assert_eq!("vicuna".parse(), Ok(Template::Vicuna));
        let error = "Alpaca2".parse::<Template>().unwrap_err();
        assert!(error.to_string().contains("alpaca, vicuna or chat"));
    }
}
