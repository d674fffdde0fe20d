//! Text as it is generated.

use super::{TextTokenizer, TokenizerError};

/// Turns generated tokens into text, piece by piece, without ever splitting a character.
///
/// A token's text can depend on the token before it (blanks) and can be a part of a character, so
/// the new text is what decoding the last tokens together adds to decoding all but the newest.
#[derive(Debug)]
pub struct TextStream<'t> {
    tokenizer: &'t TextTokenizer,
    skip_special: bool,
    /// The tokens of the last piece that was given out, then those waiting.
    ids: Vec<u32>,
    /// How many of `ids` have been given out.
    given: usize,
}

impl<'t> TextStream<'t> {
    pub(super) fn new(tokenizer: &'t TextTokenizer, skip_special: bool) -> Self {
        Self { tokenizer, skip_special, ids: Vec::new(), given: 0 }
    }

    /// Takes the next token and returns the text that is now complete; empty while a character is
    /// not.
    ///
    /// # Errors
    /// As [`TextTokenizer::decode`].
    pub fn push(&mut self, id: u32) -> Result<String, TokenizerError> {
        self.ids.push(id);
        let text = self.tokenizer.decode(&self.ids, self.skip_special)?;
        if text.ends_with(char::REPLACEMENT_CHARACTER) {
            return Ok(String::new());
        }
        let piece = self.new_text(&text)?;
        if !piece.is_empty() {
            self.ids.drain(..self.given);
            self.given = self.ids.len();
        }
        Ok(piece)
    }

    /// The text that is still waiting for the rest of a character.
    ///
    /// # Errors
    /// As [`TextTokenizer::decode`].
    pub fn finish(self) -> Result<String, TokenizerError> {
        let text = self.tokenizer.decode(&self.ids, self.skip_special)?;
        self.new_text(&text)
    }

    fn new_text(&self, text: &str) -> Result<String, TokenizerError> {
        let before = self.tokenizer.decode(&self.ids[..self.given], self.skip_special)?;
        Ok(text.strip_prefix(before.as_str()).unwrap_or_default().to_owned())
    }
}
