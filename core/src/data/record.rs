//! Rows as the rest of the program sees them, whatever file they came from.

/// Who speaks in a conversation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Role {
    /// Sets the scene; at most one, at the start.
    System,
    /// Asks.
    User,
    /// Answers; what is trained.
    Assistant,
}

impl Role {
    /// The role's name in chat templates.
    pub fn name(self) -> &'static str {
        match self {
            Self::System => "system",
            Self::User => "user",
            Self::Assistant => "assistant",
        }
    }

    /// The role that data sets call `name`, ShareGPT's names included.
    pub fn from_name(name: &str) -> Option<Self> {
        match name {
            "system" => Some(Self::System),
            "user" | "human" => Some(Self::User),
            "assistant" | "gpt" | "chatgpt" | "bot" => Some(Self::Assistant),
            _ => None,
        }
    }
}

/// One turn of a conversation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Message {
    /// Who speaks.
    pub role: Role,
    /// What is said.
    pub content: String,
}

impl Message {
    /// A turn of `role`.
    pub fn new(role: Role, content: impl Into<String>) -> Self {
        Self { role, content: content.into() }
    }
}

/// What a row teaches.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Content {
    /// One instruction and its answer.
    Instruction {
        /// What is asked.
        instruction: String,
        /// What the instruction is about; `None` where the row has none or an empty one.
        input: Option<String>,
        /// The answer to learn.
        response: String,
    },
    /// A conversation; every assistant turn is learnt. Holds at least one.
    Chat {
        /// The turns in order.
        messages: Vec<Message>,
    },
    /// Two answers to one prompt, one of them preferred. They differ.
    Preference {
        /// The conversation up to the answer; its last turn is the user's.
        prompt: Vec<Message>,
        /// The preferred answer.
        chosen: String,
        /// The other answer.
        rejected: String,
    },
}

/// A row of a data set.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Record {
    /// What it teaches.
    pub content: Content,
    /// What else is known of it, by name; see [`Record::field`].
    pub(super) fields: Vec<(String, String)>,
}

impl Record {
    /// What the row says under `name`: `source` (which part of the data set it is from), `dataset`
    /// (the set's name), `label` where the set has classes, and every short plain value of the row
    /// that is not part of its text, such as `level` in `math`.
    pub fn field(&self, name: &str) -> Option<&str> {
        self.fields.iter().find(|(field, _)| field == name).map(|(_, value)| value.as_str())
    }

    /// Names of all fields.
    pub fn field_names(&self) -> impl Iterator<Item = &str> {
        self.fields.iter().map(|(name, _)| name.as_str())
    }

    /// What is asked: instruction and input joined by a blank as OpenFedLLM does, or the last user
    /// turn before the (last) answer.
    pub fn question(&self) -> String {
        match &self.content {
            Content::Instruction { instruction, input, .. } => {
                join_input(instruction, input.as_deref())
            }
            Content::Chat { messages } | Content::Preference { prompt: messages, .. } => {
                let user = messages.iter().rev().find(|m| m.role == Role::User);
                user.map_or_else(String::new, |m| m.content.clone())
            }
        }
    }

    /// The answer that is learnt: the response, the last assistant turn, or the chosen answer.
    pub fn answer(&self) -> &str {
        match &self.content {
            Content::Instruction { response, .. } => response,
            Content::Chat { messages } => {
                let last = messages.iter().rev().find(|m| m.role == Role::Assistant);
                last.map_or("", |m| &m.content)
            }
            Content::Preference { chosen, .. } => chosen,
        }
    }
}

/// OpenFedLLM's `alpaca_format`: one blank between instruction and input.
pub(super) fn join_input(instruction: &str, input: Option<&str>) -> String {
    match input {
        Some(input) => format!("{instruction} {input}"),
        None => instruction.to_owned(),
    }
}
