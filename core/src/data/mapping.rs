//! Which of a user's own field names mean what.

use std::str::FromStr;

use super::format::{Format, InstructionFields, PreferenceFields};

/// Names of fields in a user's file, such as `instruction=question,response=answer`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct FieldMap(Vec<(String, String)>);

/// Why a field mapping cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum FieldMapError {
    /// Not of the form `name=field`.
    #[error(
        "\"{0}\" in the field mapping is not of the form name=field, as in instruction=question,response=answer"
    )]
    Form(String),
    /// The same name twice.
    #[error("the field mapping gives \"{0}\" twice")]
    Twice(String),
    /// A name that the format does not have.
    #[error("the format {format} has no \"{name}\" to map; it has {known}")]
    UnknownName {
        /// The name.
        name: String,
        /// `instruction`, `chat` or `preference`.
        format: &'static str,
        /// The names that it has.
        known: &'static str,
    },
}

impl FromStr for FieldMap {
    type Err = FieldMapError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let mut pairs: Vec<(String, String)> = Vec::new();
        for part in text.split(',').map(str::trim).filter(|p| !p.is_empty()) {
            let pair = part.split_once('=').map(|(n, f)| (n.trim(), f.trim()));
            let (name, field) = pair
                .filter(|(n, f)| !n.is_empty() && !f.is_empty())
                .ok_or_else(|| FieldMapError::Form(part.to_owned()))?;
            if pairs.iter().any(|(n, _)| n == name) {
                return Err(FieldMapError::Twice(name.to_owned()));
            }
            pairs.push((name.to_owned(), field.to_owned()));
        }
        Ok(Self(pairs))
    }
}

impl FieldMap {
    /// Whether nothing is mapped.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    fn get(&self, name: &str) -> Option<&str> {
        self.0.iter().find(|(n, _)| n == name).map(|(_, field)| field.as_str())
    }

    /// The generic format `instruction`, `chat` or `preference` with these fields; `None` for
    /// other names.
    pub(super) fn format(&self, generic: &str) -> Option<Result<Format, FieldMapError>> {
        let (format, known, names): (_, _, &[&str]) = match generic {
            "instruction" => (
                "instruction",
                "instruction, input and response",
                &["instruction", "input", "response"],
            ),
            "chat" => ("chat", "messages", &["messages"]),
            "preference" => {
                ("preference", "prompt, chosen and rejected", &["prompt", "chosen", "rejected"])
            }
            _ => return None,
        };
        if let Some((name, _)) = self.0.iter().find(|(n, _)| !names.contains(&n.as_str())) {
            return Some(Err(FieldMapError::UnknownName { name: name.clone(), format, known }));
        }
        let field = |name: &str| self.get(name).unwrap_or(name).to_owned();
        Some(Ok(match format {
            "instruction" => Format::Instruction(InstructionFields {
                instruction: field("instruction"),
                input: Some(field("input")),
                response: field("response"),
            }),
            "chat" => Format::Chat(field("messages")),
            _ => Format::Preference(PreferenceFields {
                prompt: field("prompt"),
                chosen: field("chosen"),
                rejected: field("rejected"),
            }),
        }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mapped_names_take_the_place_of_the_formats_own() {
        let map: FieldMap = "instruction = question, response=answer".parse().unwrap();
        let expected = InstructionFields::new("question", Some("input"), "answer");
        assert_eq!(map.format("instruction"), Some(Ok(Format::Instruction(expected))));
        assert_eq!(map.format("alpaca"), None);
    }

    #[test]
    fn mistakes_in_a_mapping_are_named() {
        assert_eq!("a".parse::<FieldMap>(), Err(FieldMapError::Form("a".to_owned())));
        assert_eq!("a=".parse::<FieldMap>(), Err(FieldMapError::Form("a=".to_owned())));
        assert_eq!("a=b,a=c".parse::<FieldMap>(), Err(FieldMapError::Twice("a".to_owned())));
        let map: FieldMap = "prompt=p".parse().unwrap();
        let error = map.format("chat").unwrap().unwrap_err();
        assert_eq!(error.to_string(), "the format chat has no \"prompt\" to map; it has messages");
    }
}
