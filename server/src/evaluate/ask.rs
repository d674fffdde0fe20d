//! From questions to tokens, and from a model's numbers and texts to answers.

use std::ops::ControlFlow;

use fleetune_core::data::{Message, Role, Template};
use sha2::{Digest, Sha256};

use super::journal::Answer;
use super::model::{GenerateOptions, GenerateRequest, LanguageModel, ModelError, ScoreRequest};
use super::suite::{Asking, Choice, Chosen, Prompt, Question, Scoring, Verdict, Wrapping, Writing};

/// Most tokens of a written answer to a multiple-choice question.
const CHOICE_TOKENS: usize = 32;

/// How a run asks: the same for all questions of a suite.
#[derive(Debug, Clone)]
pub struct Manner {
    /// How prompts are wrapped.
    pub wrapping: Wrapping,
    /// How multiple-choice questions are answered.
    pub scoring: Scoring,
    /// Where the chance comes from.
    pub seed: u64,
}

/// What the model is asked first, made ready.
pub enum Ready {
    /// Options to score after a prompt.
    Score {
        /// The prompt as the model reads it.
        text: String,
        /// The options as they continue it.
        options: Vec<String>,
    },
    /// A text to continue.
    Write {
        /// The prompt as the model reads it.
        text: String,
        /// How to continue it.
        options: GenerateOptions,
    },
}

impl Ready {
    /// The prompt as the model reads it.
    pub fn text(&self) -> &str {
        match self {
            Self::Score { text, .. } | Self::Write { text, .. } => text,
        }
    }

    /// A hash of everything the answer depends on besides the model.
    pub fn hash(&self) -> String {
        let mut hasher = Sha256::new();
        let mut add = |part: &str| {
            hasher.update((part.len() as u64).to_le_bytes());
            hasher.update(part);
        };
        match self {
            Self::Score { text, options } => {
                add("score");
                add(text);
                options.iter().for_each(|option| add(option));
            }
            Self::Write { text, options } => {
                add("write");
                add(text);
                // Field by field: a change of the options' form is no change of the question.
                add(&format!(
                    "{} {} {} {}",
                    options.max_tokens, options.temperature, options.samples, options.seed
                ));
                options.stop.iter().for_each(|stop| add(stop));
            }
        }
        hasher.finalize().iter().take(12).map(|byte| format!("{byte:02x}")).collect()
    }
}

/// Makes a question ready. `number` is its place in the suite, for its share of chance.
///
/// # Errors
/// When the template cannot hold it.
pub fn ready(
    model: &dyn LanguageModel,
    question: &Question,
    manner: &Manner,
    number: u64,
) -> Result<Ready, ModelError> {
    match question {
        Question::Choice(choice) => match &choice.written {
            Some(written) if manner.scoring != Scoring::LogLikelihood => Ok(Ready::Write {
                text: wrap(model, &written.prompt, manner.wrapping)?,
                options: GenerateOptions {
                    max_tokens: CHOICE_TOKENS,
                    stop: stops(&["\n\n".to_owned()], manner.wrapping),
                    temperature: 0.0,
                    samples: 1,
                    seed: manner.seed,
                },
            }),
            _ => {
                // A chat template's answer begins on a line of its own; elsewhere a blank comes
                // first.
                let chat = manner.wrapping == Wrapping::In(Template::Chat);
                let gap = if chat { "" } else { " " };
                let options = choice.options.iter().map(|option| format!("{gap}{option}"));
                let text = wrap(model, &choice.prompt, manner.wrapping)?;
                Ok(Ready::Score { text, options: options.collect() })
            }
        },
        Question::Writing(writing) => {
            let (text, samples) = match &writing.asking {
                Asking::Once(prompt) => (wrap(model, prompt, manner.wrapping)?, writing.samples),
                Asking::Then(prompt, _) => (wrap(model, prompt, manner.wrapping)?, 1),
                Asking::Turns(turns) => {
                    let first = turns.iter().take(1).map(|t| Message::new(Role::User, t.clone()));
                    (conversation(model, &first.collect::<Vec<_>>(), manner.wrapping)?, 1)
                }
            };
            let options = GenerateOptions {
                max_tokens: writing.max_tokens,
                stop: stops(&writing.stop, manner.wrapping),
                temperature: writing.temperature,
                samples,
                seed: manner.seed.wrapping_add(number),
            };
            Ok(Ready::Write { text, options })
        }
    }
}

/// Answers to scored questions, with whether a prompt had to be cut; all in one call of the model.
///
/// # Errors
/// When the model fails.
pub fn score(
    model: &mut dyn LanguageModel,
    questions: &[(&str, &[String])],
) -> Result<Vec<(Answer, bool)>, ModelError> {
    let mut requests = Vec::with_capacity(questions.len());
    let mut cuts = Vec::with_capacity(questions.len());
    for (text, options) in questions {
        let mut prefix = model.encode(text, true)?;
        let mut continuations = Vec::with_capacity(options.len());
        for option in *options {
            // Together, so that tokens are those of the whole text.
            let whole = model.encode(&format!("{text}{option}"), true)?;
            let rest = whole.get(prefix.len()..).unwrap_or(&[]);
            continuations.push(match rest {
                [] => model.encode(option, false)?,
                rest => rest.to_vec(),
            });
        }
        let longest = continuations.iter().map(Vec::len).max().unwrap_or(0);
        cuts.push(cut(&mut prefix, model.max_tokens(), longest)?);
        requests.push(ScoreRequest { prefix, continuations });
    }
    let scores = model.score(&requests)?;
    let answers = scores.iter().map(|options| options.iter().map(|o| -o.loss_sum).collect());
    Ok(answers.map(Answer::Scores).zip(cuts).collect())
}

/// Answers questions in writing, all together. `done` is given a question's number, its answers and
/// whether a prompt had to be cut, as soon as the answers are complete, and says whether to go on.
///
/// # Errors
/// When the model fails, or the template cannot hold a conversation.
pub fn write(
    model: &mut dyn LanguageModel,
    questions: &[(&Question, &Ready)],
    manner: &Manner,
    done: &mut dyn FnMut(usize, Answer, bool) -> ControlFlow<()>,
) -> Result<(), ModelError> {
    let mut dialogues: Vec<Dialogue> = questions
        .iter()
        .map(|&(question, ready)| Dialogue { question, ready, answers: Vec::new(), cut: false })
        .collect();
    let mut flow = ControlFlow::Continue(());
    for turn in 0.. {
        let mut requests = Vec::new();
        let mut asked = Vec::new();
        for (number, dialogue) in dialogues.iter_mut().enumerate() {
            if let Some(request) = dialogue.request(model, manner.wrapping, turn)? {
                requests.push(request);
                asked.push(number);
            }
        }
        if requests.is_empty() {
            break;
        }
        model.generate(&requests, &mut |i, answers| {
            let dialogue = &mut dialogues[asked[i]];
            dialogue.answers.extend(answers);
            if turn + 1 == dialogue.turns() {
                let answers = std::mem::take(&mut dialogue.answers);
                flow = done(asked[i], Answer::Texts(answers), dialogue.cut);
            }
            flow
        })?;
        if flow.is_break() {
            break;
        }
    }
    Ok(())
}

/// A question in writing and what was answered so far.
struct Dialogue<'a> {
    question: &'a Question,
    ready: &'a Ready,
    answers: Vec<String>,
    cut: bool,
}

impl Dialogue<'_> {
    fn asking(&self) -> Option<&Asking> {
        match self.question {
            Question::Writing(Writing { asking, .. }) => Some(asking),
            Question::Choice(_) => None,
        }
    }

    /// How many times the model is asked.
    fn turns(&self) -> usize {
        match self.asking() {
            Some(Asking::Turns(turns)) => turns.len(),
            Some(Asking::Then(..)) => 2,
            Some(Asking::Once(_)) | None => 1,
        }
    }

    /// What the model is asked in a turn, counted from 0, if there is one.
    fn request(
        &mut self,
        model: &dyn LanguageModel,
        wrapping: Wrapping,
        turn: usize,
    ) -> Result<Option<GenerateRequest>, ModelError> {
        let Ready::Write { text, options } = self.ready else { return Ok(None) };
        if turn >= self.turns() {
            return Ok(None);
        }
        let text = match self.asking() {
            Some(Asking::Then(_, then)) if turn > 0 => {
                let before = self.answers.first().map_or("", String::as_str);
                wrap(model, &then(before), wrapping)?
            }
            Some(Asking::Turns(turns)) if turn > 0 => {
                let mut messages = Vec::new();
                for (question, answer) in turns.iter().zip(&self.answers) {
                    messages.push(Message::new(Role::User, question.clone()));
                    messages.push(Message::new(Role::Assistant, answer.trim()));
                }
                messages.push(Message::new(Role::User, turns[turn].clone()));
                conversation(model, &messages, wrapping)?
            }
            _ => text.clone(),
        };
        let mut prompt = model.encode(&text, true)?;
        let limit = model.max_tokens();
        // At least half of the room stays for the question.
        let max_tokens = options.max_tokens.min(limit / 2).max(1);
        self.cut |= cut(&mut prompt, limit, max_tokens)?;
        Ok(Some(GenerateRequest {
            prompt,
            options: GenerateOptions { max_tokens, ..options.clone() },
        }))
    }
}

/// What the answer to a multiple-choice question is worth.
pub fn choice_verdict(choice: &Choice, answer: &Answer) -> Verdict {
    let shown = |option: Option<usize>| {
        option.and_then(|option| choice.options.get(option)).cloned().unwrap_or_default()
    };
    let (raw, normalised, understood) = match answer {
        Answer::Scores(scores) => {
            let length = |option: usize| {
                choice.options.get(option).map_or(1, |text| text.chars().count()).max(1) as f64
            };
            let raw = likeliest(scores.iter().copied());
            let per_character = scores.iter().enumerate().map(|(i, score)| score / length(i));
            (raw, likeliest(per_character), shown(raw))
        }
        Answer::Texts(texts) => {
            let text = texts.first().map_or("", String::as_str);
            let read = choice.written.as_ref().map(|written| written.read);
            let raw = read.and_then(|read| read(text, choice.options.len()));
            (raw, None, shown(raw))
        }
    };
    let right = raw == Some(choice.gold);
    let mut verdict = Verdict::right_or_wrong("accuracy", right);
    if normalised.is_some() {
        let right = f64::from(u8::from(normalised == Some(choice.gold)));
        verdict.scores.insert("accuracy_norm".to_owned(), right);
    }
    verdict.choice = Some(Chosen { gold: choice.gold, raw, normalised });
    verdict.shown(shown(Some(choice.gold)), understood)
}

/// The first of the largest values.
fn likeliest(values: impl Iterator<Item = f64>) -> Option<usize> {
    let mut best: Option<(usize, f64)> = None;
    for (i, value) in values.enumerate() {
        if best.is_none_or(|(_, largest)| value > largest) {
            best = Some((i, value));
        }
    }
    best.map(|(i, _)| i)
}

/// Stops of a plain text; a template has its own end.
fn stops(stops: &[String], wrapping: Wrapping) -> Vec<String> {
    match wrapping {
        Wrapping::Plain => stops.to_vec(),
        Wrapping::In(_) => Vec::new(),
    }
}

fn wrap(
    model: &dyn LanguageModel,
    prompt: &Prompt,
    wrapping: Wrapping,
) -> Result<String, ModelError> {
    match wrapping {
        Wrapping::Plain => Ok(prompt.plain.clone()),
        Wrapping::In(template) => {
            model.render(template, &[Message::new(Role::User, prompt.message.clone())])
        }
    }
}

/// A conversation up to the next answer. Without a template it is a transcript.
fn conversation(
    model: &dyn LanguageModel,
    messages: &[Message],
    wrapping: Wrapping,
) -> Result<String, ModelError> {
    let Wrapping::In(template) = wrapping else {
        let lines = messages.iter().map(|message| match message.role {
            Role::Assistant => format!("### Assistant: {}\n", message.content),
            _ => format!("### Human: {}\n", message.content),
        });
        return Ok(lines.collect::<String>() + "### Assistant:");
    };
    model.render(template, messages)
}

/// Drops the beginning of a prompt that leaves no room for `after` more tokens: examples go before
/// the question does.
fn cut(prompt: &mut Vec<u32>, limit: usize, after: usize) -> Result<bool, ModelError> {
    let room = limit.saturating_sub(after);
    if room == 0 {
        return Err(ModelError::TooLong { needed: prompt.len() + after, limit });
    }
    let surplus = prompt.len().saturating_sub(room);
    prompt.drain(..surplus);
    Ok(surplus > 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn choice() -> Choice {
        Choice {
            prompt: Prompt::same("q"),
            options: vec!["no".to_owned(), "certainly".to_owned()],
            gold: 1,
            written: None,
        }
    }

    #[test]
    fn the_likeliest_option_is_chosen_and_that_for_its_length() {
        let verdict = choice_verdict(&choice(), &Answer::Scores(vec![-2.0, -3.0]));
        let chosen = verdict.choice.unwrap();
        assert_eq!((chosen.raw, chosen.normalised), (Some(0), Some(1)));
        assert_eq!((verdict.scores["accuracy"], verdict.scores["accuracy_norm"]), (0.0, 1.0));
        assert_eq!((verdict.expected.as_str(), verdict.understood.as_str()), ("certainly", "no"));
    }

    #[test]
    fn the_question_is_kept_and_examples_are_cut() {
        let mut prompt = vec![1, 2, 3, 4, 5];
        assert!(cut(&mut prompt, 6, 3).unwrap());
        assert_eq!(prompt, [3, 4, 5]);
        assert!(!cut(&mut prompt, 6, 3).unwrap());
        assert!(cut(&mut prompt, 3, 3).is_err());
    }
}
