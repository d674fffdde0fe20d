//! From a row to token ids with a mask, or to a tokenised pair.
//!
//! A text is always tokenised whole. Where its parts begin and end in tokens is found by tokenising
//! the text up to there and counting the tokens in common, which holds for every tokenizer, also
//! for those that merge or mark blanks across the boundary.

use std::ops::Range;

use super::record::{Content, Message, Record, Role};
use super::template::{self, Block, PairText, Template};
use super::{TokenizedExample, TokenizedPair};

/// Whatever went wrong inside a tokenizer.
pub type TokenizerError = Box<dyn std::error::Error + Send + Sync>;

/// What the data layer needs of a model's tokenizer.
pub trait Tokenize: Sync {
    /// Token ids of `text`. Special tokens in the text are recognised; none is added.
    ///
    /// # Errors
    /// When the tokenizer cannot represent the text.
    fn encode(&self, text: &str) -> Result<Vec<u32>, TokenizerError>;

    /// The token that the model expects before every text, if it expects one.
    fn bos(&self) -> Option<u32>;

    /// The token that ends an answer.
    fn eos(&self) -> u32;

    /// The conversation as the model's own chat template writes it. With `open_answer` the text
    /// ends where the assistant's next answer begins.
    ///
    /// # Errors
    /// When the model has no chat template, or the template refuses the conversation.
    fn render_chat(&self, turns: &[Message], open_answer: bool) -> Result<String, TokenizerError>;
}

/// Why a row could not be tokenised.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum EncodeError {
    /// The tokenizer refuses a text.
    #[error("the tokenizer cannot encode the text: {0}")]
    Tokenizer(#[source] TokenizerError),
    /// The chat template refuses a conversation.
    #[error("the model's chat template cannot write the conversation ({0}); try --template vicuna")]
    ChatTemplate(#[source] TokenizerError),
    /// The chat template changes what the assistant says.
    #[error(
        "the model's chat template does not repeat the assistant's words, so they cannot be told from the prompt; try --template vicuna"
    )]
    RewrittenAnswer,
    /// Alpaca's template has no place for the conversation.
    #[error(
        "the alpaca template holds one question and one answer, not a conversation; use --template vicuna or chat"
    )]
    SeveralTurns,
    /// A preference where an answer is to be learnt.
    #[error("the row is a preference pair; train on it with --task dpo")]
    IsPreference,
    /// No preference where one is needed.
    #[error(
        "the row is no preference pair (prompt, chosen, rejected); train on it with --task sft"
    )]
    NoPreference,
    /// Sequences too short to hold anything.
    #[error("a sequence length of {0} holds no prompt and answer; use at least {MIN_SEQ_LEN}")]
    SeqLen(usize),
}

/// The shortest sequences that are worth training on: prompt, answer and end.
const MIN_SEQ_LEN: usize = 4;

/// Turns rows into tokens for one model, template and sequence length.
pub struct Encoder<'t> {
    tokenizer: &'t dyn Tokenize,
    template: Template,
    seq_len: usize,
    /// What the chat template writes after an assistant's words. Empty for other templates.
    turn_end: String,
}

impl<'t> Encoder<'t> {
    /// An encoder whose sequences have at most `seq_len` tokens.
    ///
    /// # Errors
    /// When `seq_len` is below four, or the model has no usable chat template and `template` is
    /// [`Template::Chat`].
    pub fn new(
        template: Template,
        tokenizer: &'t dyn Tokenize,
        seq_len: usize,
    ) -> Result<Self, EncodeError> {
        if seq_len < MIN_SEQ_LEN {
            return Err(EncodeError::SeqLen(seq_len));
        }
        let turn_end = match template {
            Template::Chat => chat_turn_end(tokenizer)?,
            Template::Alpaca | Template::Vicuna => String::new(),
        };
        Ok(Self { tokenizer, template, seq_len, turn_end })
    }

    /// The template.
    pub fn template(&self) -> Template {
        self.template
    }

    /// The most tokens a sequence has.
    pub fn seq_len(&self) -> usize {
        self.seq_len
    }

    /// Tokenises a row to learn its answers: ids and mask, cut at the sequence length on the right.
    /// `None` where no token to learn is left.
    ///
    /// # Errors
    /// When the row is a preference, or template or tokenizer cannot take it.
    pub fn example(&self, record: &Record) -> Result<Option<TokenizedExample>, EncodeError> {
        if matches!(record.content, Content::Preference { .. }) {
            return Err(EncodeError::IsPreference);
        }
        let messages = template::conversation(record);
        let blocks = match self.template {
            Template::Alpaca => {
                Vec::from([template::alpaca_block(&messages).ok_or(EncodeError::SeveralTurns)?])
            }
            Template::Vicuna => template::vicuna_blocks(&messages),
            Template::Chat => Vec::from([self.chat_block(&messages)?]),
        };
        let mut example = TokenizedExample { ids: Vec::new(), supervised: Vec::new() };
        for block in &blocks {
            self.push_block(block, &mut example)?;
        }
        self.prepend_bos(&mut example.ids);
        // The mask of a begin token that was put in front.
        if example.ids.len() > example.supervised.len() {
            example.supervised.insert(0, false);
        }
        example.ids.truncate(self.seq_len);
        example.supervised.truncate(self.seq_len);
        Ok(Some(example).filter(|e| e.supervised_tokens() > 0))
    }

    /// Tokenises a preference. Prompt and longer answer have at most the sequence length together:
    /// of a prompt that is too long the end is kept (and the begin token), but at least half the
    /// sequence stays for it; of an answer that is still too long the beginning is kept. `None`
    /// where the answers are the same after the cut.
    ///
    /// # Errors
    /// When the row is no preference, or template or tokenizer cannot take it.
    pub fn pair(&self, record: &Record) -> Result<Option<TokenizedPair>, EncodeError> {
        let text = self.pair_text(record)?;
        let prompt = self.encode(&text.prompt)?;
        let chosen = self.encode(&(text.prompt.clone() + &text.chosen))?;
        let rejected = self.encode(&(text.prompt + &text.rejected))?;
        let shared = shared_len(&prompt, &chosen).min(shared_len(&prompt, &rejected));
        let mut prompt = prompt[..shared].to_vec();
        self.prepend_bos(&mut prompt);
        let end = text.end.then(|| self.tokenizer.eos());
        let [mut chosen, mut rejected] = [chosen, rejected]
            .map(|ids| ids[shared..].iter().copied().chain(end).collect::<Vec<_>>());

        let longest = chosen.len().max(rejected.len());
        let room = self.seq_len.saturating_sub(longest).max(self.seq_len / 2);
        if prompt.len() > room {
            let bos = self.tokenizer.bos().filter(|b| prompt.first() == Some(b) && room > 1);
            let tail = prompt.len() - room + usize::from(bos.is_some());
            prompt = bos.into_iter().chain(prompt[tail..].iter().copied()).collect();
        }
        let room = self.seq_len - prompt.len();
        chosen.truncate(room);
        rejected.truncate(room);
        let usable = !prompt.is_empty() && !chosen.is_empty() && !rejected.is_empty();
        let pair = TokenizedPair { prompt, chosen, rejected };
        Ok(Some(pair).filter(|pair| usable && pair.chosen != pair.rejected))
    }

    /// Token ids of what the model reads before it gives the row's (last) answer, for generating.
    ///
    /// # Errors
    /// When template or tokenizer cannot take the row.
    pub fn prompt(&self, record: &Record) -> Result<Vec<u32>, EncodeError> {
        let mut messages = template::conversation(record);
        if let Some(answer) = messages.iter().rposition(|m| m.role == Role::Assistant)
            && !matches!(record.content, Content::Preference { .. })
        {
            messages.truncate(answer);
        }
        let mut ids = self.encode(&self.prompt_text(&messages)?)?;
        self.prepend_bos(&mut ids);
        Ok(ids)
    }

    /// The text that the model reads before it answers the last of `messages`.
    ///
    /// # Errors
    /// When the template cannot hold the conversation.
    pub fn prompt_text(&self, messages: &[Message]) -> Result<String, EncodeError> {
        match self.template {
            Template::Alpaca => template::alpaca_prompt(messages).ok_or(EncodeError::SeveralTurns),
            Template::Vicuna => Ok(template::vicuna_prompt(messages)),
            Template::Chat => self.render(messages, true),
        }
    }

    /// A preference as text.
    pub(super) fn pair_text(&self, record: &Record) -> Result<PairText, EncodeError> {
        let Content::Preference { prompt, chosen, rejected } = &record.content else {
            return Err(EncodeError::NoPreference);
        };
        let text = self.prompt_text(prompt)?;
        if self.template != Template::Chat {
            let [chosen, rejected] = [chosen, rejected].map(|answer| format!(" {answer}"));
            return Ok(PairText { prompt: text, chosen, rejected, end: true });
        }
        let answer = |answer: &str| -> Result<(String, Range<usize>), EncodeError> {
            let mut turns = prompt.clone();
            turns.push(Message::new(Role::Assistant, answer));
            let full = self.render(&turns, false)?;
            let range = self.answer_range(&full, &text, answer)?;
            Ok((full, range))
        };
        let ((chosen, c), (rejected, r)) = (answer(chosen)?, answer(rejected)?);
        let shared = c.start.min(r.start);
        Ok(PairText {
            prompt: text[..shared].to_owned(),
            chosen: chosen[shared..c.end].to_owned(),
            rejected: rejected[shared..r.end].to_owned(),
            end: self.turn_end.is_empty(),
        })
    }

    /// The conversation as the chat template writes it; every assistant turn with its end is learnt.
    fn chat_block(&self, messages: &[Message]) -> Result<Block, EncodeError> {
        let last = messages.iter().rposition(|m| m.role == Role::Assistant);
        let messages = &messages[..last.map_or(0, |at| at + 1)];
        let text = self.render(messages, false)?;
        let mut learnt: Vec<Range<usize>> = Vec::new();
        for (i, message) in messages.iter().enumerate() {
            if message.role == Role::Assistant {
                let before = self.render(&messages[..i], true)?;
                learnt.push(self.answer_range(&text, &before, &message.content)?);
            }
        }
        let mut text = text;
        // Nothing is learnt from what the template writes after the last answer.
        text.truncate(learnt.last().map_or(0, |range| range.end));
        Ok(Block { text, learnt, end: self.turn_end.is_empty() })
    }

    /// Where in `full` the assistant's turn stands that follows the text `before`: from where the
    /// prompt ends to the end of the turn.
    fn answer_range(
        &self,
        full: &str,
        before: &str,
        answer: &str,
    ) -> Result<Range<usize>, EncodeError> {
        let start = shared_text(full, before);
        // Templates may trim what is said, but not change it.
        let words = answer.trim().to_owned() + &self.turn_end;
        let words_padded = answer.to_owned() + &self.turn_end;
        [words_padded, words]
            .iter()
            .find_map(|words| full[start..].find(words.as_str()).map(|at| start + at + words.len()))
            .map(|end| start..end)
            .ok_or(EncodeError::RewrittenAnswer)
    }

    fn render(&self, messages: &[Message], open_answer: bool) -> Result<String, EncodeError> {
        self.tokenizer.render_chat(messages, open_answer).map_err(EncodeError::ChatTemplate)
    }

    fn encode(&self, text: &str) -> Result<Vec<u32>, EncodeError> {
        self.tokenizer.encode(text).map_err(EncodeError::Tokenizer)
    }

    fn push_block(&self, block: &Block, example: &mut TokenizedExample) -> Result<(), EncodeError> {
        let ids = self.encode(&block.text)?;
        let mut supervised = vec![false; ids.len()];
        for range in &block.learnt {
            let token_at = |byte: usize| -> Result<usize, EncodeError> {
                if byte == block.text.len() {
                    return Ok(ids.len());
                }
                Ok(shared_len(&self.encode(&block.text[..byte])?, &ids))
            };
            let (start, end) = (token_at(range.start)?, token_at(range.end)?);
            supervised[start.min(end)..end].fill(true);
        }
        example.ids.extend(ids);
        example.supervised.extend(supervised);
        if block.end {
            example.ids.push(self.tokenizer.eos());
            example.supervised.push(true);
        }
        Ok(())
    }

    /// Puts the begin token in front, unless the text (a chat template's, for one) brings its own.
    fn prepend_bos(&self, ids: &mut Vec<u32>) {
        if let Some(bos) = self.tokenizer.bos()
            && ids.first() != Some(&bos)
        {
            ids.insert(0, bos);
        }
    }
}

/// What the chat template writes after an assistant's words, without blanks at the end.
fn chat_turn_end(tokenizer: &dyn Tokenize) -> Result<String, EncodeError> {
    const PROBE: &str = "fleetune-probe-answer";
    let turns = [Message::new(Role::User, "question"), Message::new(Role::Assistant, PROBE)];
    let text = tokenizer.render_chat(&turns, false).map_err(EncodeError::ChatTemplate)?;
    let at = text.rfind(PROBE).ok_or(EncodeError::RewrittenAnswer)?;
    Ok(text[at + PROBE.len()..].trim_end().to_owned())
}

/// Number of tokens that both begin with.
fn shared_len(a: &[u32], b: &[u32]) -> usize {
    a.iter().zip(b).take_while(|(a, b)| a == b).count()
}

/// Number of bytes, in whole characters, that both begin with.
fn shared_text(a: &str, b: &str) -> usize {
    a.chars().zip(b.chars()).take_while(|(a, b)| a == b).map(|(a, _)| a.len_utf8()).sum()
}
