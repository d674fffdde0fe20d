//! From questions to tokens, and from a model's numbers and texts to answers.

use std::ops::ControlFlow;

use fleetune_core::data::{Message, Role, Template};
use sha2::{Digest, Sha256};

use super::grading::{Chosen, Verdict};
use super::journal::{Answer, hash};
use super::model::{GenerateOptions, GenerateRequest, LanguageModel, ModelError, ScoreRequest};
use super::suite::{Asking, Choice, Prompt, Question, Scoring, Wrapping, Writing};

/// Most tokens of a written answer to a multiple-choice question.
const CHOICE_TOKENS: usize = 32;
/// Who asks, in a transcript without a template.
const HUMAN: &str = "### Human:";
/// Stands for answers that are not there yet, where what is asked after them is told apart.
const ANY_ANSWER: &str = "any answer ";
/// How often: longer than what a further question takes of an answer.
const ANY_ANSWERS: usize = 500;

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
        /// Hash of what is asked after the first answer, if anything is.
        further: Option<String>,
    },
}

impl Ready {
    /// The prompt as the model reads it.
    pub fn text(&self) -> &str {
        match self {
            Self::Score { text, .. } | Self::Write { text, .. } => text,
        }
    }

    /// A hash of everything the answers depend on besides the model: all turns of a conversation.
    pub fn hash(&self) -> String {
        match self {
            Self::Score { text, options } => {
                hash(["score", text].into_iter().chain(options.iter().map(String::as_str)))
            }
            Self::Write { text, options, further } => {
                // Field by field: a change of the options' form is no change of the question.
                let how = format!(
                    "{} {} {} {}",
                    options.max_tokens, options.temperature, options.samples, options.seed
                );
                let stops = options.stop.iter().map(String::as_str);
                let first = hash(["write", text, &how].into_iter().chain(stops));
                match further {
                    Some(further) => hash(["then", &first, further]),
                    None => first,
                }
            }
        }
    }
}

/// Makes a question ready. `id` is its name within the suite, for its share of chance.
///
/// # Errors
/// When the template cannot hold it.
pub fn ready(
    model: &dyn LanguageModel,
    question: &Question,
    manner: &Manner,
    id: &str,
) -> Result<Ready, ModelError> {
    match question {
        Question::Choice(choice) => match &choice.written {
            Some(written) if manner.scoring != Scoring::LogLikelihood => Ok(Ready::Write {
                text: wrap(model, &written.prompt, manner.wrapping)?,
                options: GenerateOptions {
                    max_tokens: CHOICE_TOKENS,
                    stop: stops(&["\n\n".to_owned()], &[], manner.wrapping),
                    temperature: 0.0,
                    samples: 1,
                    seed: 0,
                },
                further: None,
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
            let mut stop = stops(&writing.stop, &writing.stop_plain, manner.wrapping);
            if matches!(writing.asking, Asking::Turns(_)) && manner.wrapping == Wrapping::Plain {
                stop.push(format!("\n{HUMAN}"));
            }
            let options = GenerateOptions {
                max_tokens: writing.max_tokens,
                stop,
                temperature: writing.temperature,
                samples,
                seed: if writing.temperature > 0.0 { share(manner.seed, id) } else { 0 },
            };
            let further = further(model, &writing.asking, manner.wrapping)?;
            Ok(Ready::Write { text, options, further })
        }
    }
}

/// Hash of what is asked after the first answer, as the model would read it after any answer.
fn further(
    model: &dyn LanguageModel,
    asking: &Asking,
    wrapping: Wrapping,
) -> Result<Option<String>, ModelError> {
    let text = match asking {
        Asking::Once(_) => return Ok(None),
        Asking::Turns(turns) if turns.len() < 2 => return Ok(None),
        // The last turn shows all of them.
        Asking::Turns(turns) => turn(model, turns, turns.len() - 1, |_| ANY_ANSWER, wrapping)?,
        Asking::Then(_, then) => wrap(model, &then(&ANY_ANSWER.repeat(ANY_ANSWERS)), wrapping)?,
    };
    Ok(Some(hash([text.as_str()])))
}

/// The chance of one question: its own, whatever other questions are asked beside it.
fn share(seed: u64, id: &str) -> u64 {
    let digest = Sha256::digest(id);
    digest.iter().take(8).fold(0, |share, &byte| share << 8 | u64::from(byte)) ^ seed
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
        cuts.push(cut(model, &mut prefix, longest)?);
        requests.push(ScoreRequest { prefix, continuations });
    }
    let scores = model.score(&requests)?;
    let answers = scores.iter().map(|options| options.iter().map(|o| -o.loss_sum).collect());
    Ok(answers.map(Answer::Scores).zip(cuts).collect())
}

/// Answers questions in writing, all together. `done` is given a question's number, its answers so
/// far and whether a prompt had to be cut, as soon as a turn is complete, and says whether to go on.
///
/// # Errors
/// When the model fails, or the template cannot hold a conversation.
pub fn write(
    model: &mut dyn LanguageModel,
    mut dialogues: Vec<Dialogue>,
    manner: &Manner,
    done: &mut dyn FnMut(usize, Answer, bool) -> ControlFlow<()>,
) -> Result<(), ModelError> {
    loop {
        let mut requests = Vec::new();
        let mut asked = Vec::new();
        for (number, dialogue) in dialogues.iter_mut().enumerate() {
            if let Some(request) = dialogue.request(model, manner.wrapping)? {
                requests.push(request);
                asked.push(number);
            }
        }
        if requests.is_empty() {
            return Ok(());
        }
        let mut flow = ControlFlow::Continue(());
        model.generate(&requests, &mut |i, answers| {
            let dialogue = &mut dialogues[asked[i]];
            dialogue.answers.extend(answers);
            flow = done(asked[i], Answer::Texts(dialogue.answers.clone()), dialogue.cut);
            flow
        })?;
        if flow.is_break() {
            return Ok(());
        }
    }
}

/// Whether an answer is one to this question, and all of it.
pub fn is_whole(question: &Question, ready: &Ready, answer: &Answer) -> bool {
    match (ready, answer) {
        (Ready::Score { options, .. }, Answer::Scores(scores)) => scores.len() == options.len(),
        (Ready::Write { options, .. }, Answer::Texts(texts)) => {
            texts.len() == options.samples * turns(question)
        }
        _ => false,
    }
}

/// How many times the model is asked.
fn turns(question: &Question) -> usize {
    match question {
        Question::Writing(Writing { asking: Asking::Turns(turns), .. }) => turns.len(),
        Question::Writing(Writing { asking: Asking::Then(..), .. }) => 2,
        Question::Writing(_) | Question::Choice(_) => 1,
    }
}

/// A question in writing and what was answered so far.
pub struct Dialogue<'a> {
    question: &'a Question,
    ready: &'a Ready,
    answers: Vec<String>,
    cut: bool,
}

impl<'a> Dialogue<'a> {
    /// A question to ask, of which `answers` to the first turns are known; `cut` says whether one
    /// of their prompts had to be cut.
    pub fn new(question: &'a Question, ready: &'a Ready, answers: Vec<String>, cut: bool) -> Self {
        Self { question, ready, answers, cut }
    }

    /// What the model is asked next, if there is anything.
    fn request(
        &mut self,
        model: &dyn LanguageModel,
        wrapping: Wrapping,
    ) -> Result<Option<GenerateRequest>, ModelError> {
        let Ready::Write { text, options, .. } = self.ready else { return Ok(None) };
        let turn = self.answers.len() / options.samples.max(1);
        if turn >= turns(self.question) {
            return Ok(None);
        }
        let asking = match self.question {
            Question::Writing(writing) => Some(&writing.asking),
            Question::Choice(_) => None,
        };
        let text = match asking {
            Some(Asking::Then(_, then)) if turn > 0 => {
                let before = self.answers.first().map_or("", String::as_str);
                wrap(model, &then(before), wrapping)?
            }
            Some(Asking::Turns(turns)) if turn > 0 => {
                self::turn(model, turns, turn, |before| &self.answers[before], wrapping)?
            }
            _ => text.clone(),
        };
        let mut prompt = model.encode(&text, true)?;
        // At least half of the room stays for the question.
        let max_tokens = options.max_tokens.min(model.max_tokens() / 2).max(1);
        self.cut |= cut(model, &mut prompt, max_tokens)?;
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

/// Texts that end an answer: the question's own, those that hold for plain text where there is no
/// template, and the beginning of a further turn that the model makes up.
fn stops(stop: &[String], stop_plain: &[String], wrapping: Wrapping) -> Vec<String> {
    let further: Vec<String> = match wrapping {
        Wrapping::Plain => stop_plain.to_vec(),
        Wrapping::In(Template::Alpaca) => vec!["\n### Instruction:".to_owned()],
        Wrapping::In(Template::Vicuna) => vec!["USER:".to_owned()],
        // Its end of turn is a token, where the model stops by itself.
        Wrapping::In(Template::Chat) => Vec::new(),
    };
    stop.iter().cloned().chain(further).collect()
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

/// A conversation up to the answer to the turn numbered `last`; `answer` gives the earlier ones.
fn turn<'a>(
    model: &dyn LanguageModel,
    turns: &[String],
    last: usize,
    answer: impl Fn(usize) -> &'a str,
    wrapping: Wrapping,
) -> Result<String, ModelError> {
    let mut messages = Vec::new();
    for (number, question) in turns.iter().enumerate().take(last) {
        messages.push(Message::new(Role::User, question.clone()));
        messages.push(Message::new(Role::Assistant, answer(number).trim()));
    }
    messages.extend(turns.get(last).map(|question| Message::new(Role::User, question.clone())));
    conversation(model, &messages, wrapping)
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
            _ => format!("{HUMAN} {}\n", message.content),
        });
        return Ok(lines.collect::<String>() + "### Assistant:");
    };
    model.render(template, messages)
}

/// Drops the beginning of a prompt that leaves no room for `after` more tokens: examples go before
/// the question does. The token that the model wants before every text stays.
pub fn cut(
    model: &dyn LanguageModel,
    prompt: &mut Vec<u32>,
    after: usize,
) -> Result<bool, ModelError> {
    let limit = model.max_tokens();
    let room = limit.saturating_sub(after);
    if room == 0 {
        return Err(ModelError::TooLong { needed: prompt.len() + after, limit });
    }
    let surplus = prompt.len().saturating_sub(room);
    if surplus == 0 {
        return Ok(false);
    }
    let begins = model.encode("", true)?.first() == prompt.first();
    // With room for one token only, that is the prompt's last.
    let kept = usize::from(begins && room > 1);
    prompt.drain(kept..kept + surplus);
    Ok(true)
}

#[cfg(test)]
mod tests {
    use fleetune_core::train::Evaluation;

    use super::*;
    use crate::evaluate::grading::{GradeError, Grader, Grading};
    use crate::evaluate::model::Identity;
    use crate::training::ComputePrecision;

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
    fn a_template_keeps_a_questions_stops_and_ends_where_the_next_turn_begins() {
        let (own, plain) = (["\n".to_owned()], ["\ndef".to_owned()]);
        let ends = |wrapping| stops(&own, &plain, wrapping);
        assert_eq!(ends(Wrapping::Plain), ["\n", "\ndef"]);
        assert_eq!(ends(Wrapping::In(Template::Alpaca)), ["\n", "\n### Instruction:"]);
        assert_eq!(ends(Wrapping::In(Template::Chat)), ["\n"]);
    }

    #[test]
    fn a_question_has_its_own_chance_whatever_is_asked_beside_it() {
        assert_eq!(share(1, "a"), share(1, "a"));
        assert_ne!(share(1, "a"), share(1, "b"));
        assert_ne!(share(1, "a"), share(2, "a"));
    }

    #[test]
    fn an_answer_of_another_kind_or_length_is_no_answer() {
        let question = Question::Choice(choice());
        let ready = Ready::Score { text: String::new(), options: vec!["a".into(), "b".into()] };
        let whole = |answer| is_whole(&question, &ready, &answer);
        assert!(whole(Answer::Scores(vec![-1.0, -2.0])));
        assert!(!whole(Answer::Scores(vec![-1.0])));
        assert!(!whole(Answer::Texts(vec!["a".to_owned(), "b".to_owned()])));
    }

    #[test]
    fn the_question_is_kept_and_examples_are_cut() {
        let model = |start| Small { start, room: 6 };
        let mut prompt = vec![1, 2, 3, 4, 5];
        assert!(cut(&model(None), &mut prompt, 3).unwrap());
        assert_eq!(prompt, [3, 4, 5]);
        assert!(!cut(&model(None), &mut prompt, 3).unwrap());
        assert!(cut(&model(None), &mut prompt, 6).is_err());
    }

    #[test]
    fn the_token_before_every_text_is_kept() {
        let model = Small { start: Some(1), room: 6 };
        let mut prompt = vec![1, 2, 3, 4, 5];
        assert!(cut(&model, &mut prompt, 3).unwrap());
        assert_eq!(prompt, [1, 4, 5]);
        assert!(cut(&model, &mut prompt, 5).unwrap());
        assert_eq!(prompt, [5]);
        let mut without = vec![7, 2, 3, 4, 5];
        assert!(cut(&model, &mut without, 3).unwrap());
        assert_eq!(without, [3, 4, 5]);
    }

    #[test]
    fn everything_that_is_asked_later_tells_questions_apart() {
        let model = Small { start: None, room: 6 };
        let hash = |asking: Asking| {
            let question = Question::Writing(Writing {
                asking,
                max_tokens: 4,
                stop: vec![],
                stop_plain: vec![],
                temperature: 0.0,
                samples: 1,
                grader: Box::new(Nobody),
            });
            let (wrapping, scoring) = (Wrapping::Plain, Scoring::Generation);
            let manner = Manner { wrapping, scoring, seed: 0 };
            ready(&model, &question, &manner, "1").unwrap().hash()
        };
        let turns =
            |turns: &[&str]| hash(Asking::Turns(turns.iter().map(|t| (*t).into()).collect()));
        assert_eq!(turns(&["a", "b"]), turns(&["a", "b"]));
        assert_ne!(turns(&["a", "b"]), turns(&["a", "c"]));
        assert_ne!(turns(&["a", "b", "c"]), turns(&["a", "x", "c"]));
        let then = |words: &'static str, length: usize| {
            let made = move |answer: &str| Prompt::same(format!("{}{words}", &answer[..length]));
            hash(Asking::Then(Prompt::same("a"), Box::new(made)))
        };
        assert_eq!(then("b", 9), then("b", 9));
        assert_ne!(then("b", 9), then("c", 9));
        assert_ne!(then("b", 9), then("b", 2000));
    }

    /// Grades nothing.
    struct Nobody;

    impl Grader for Nobody {
        fn grade(&self, _: &[String], _: &mut Grading) -> Result<Verdict, GradeError> {
            Ok(Verdict::default())
        }
    }

    /// A model with little room, and perhaps a token before every text.
    struct Small {
        start: Option<u32>,
        room: usize,
    }

    impl LanguageModel for Small {
        fn identity(&self) -> Identity {
            Identity {
                model: "small".to_owned(),
                model_sha256: String::new(),
                adapter: None,
                adapter_sha256: None,
                settings_sha256: String::new(),
                precision: ComputePrecision::F32,
            }
        }

        fn max_tokens(&self) -> usize {
            self.room
        }

        fn encode(&self, text: &str, start: bool) -> Result<Vec<u32>, ModelError> {
            let first = self.start.filter(|_| start);
            Ok(first.into_iter().chain(text.bytes().map(u32::from)).collect())
        }

        fn render(&self, _: Template, _: &[Message]) -> Result<String, ModelError> {
            Ok(String::new())
        }

        fn score(&mut self, _: &[ScoreRequest]) -> Result<Vec<Vec<Evaluation>>, ModelError> {
            Ok(Vec::new())
        }

        fn generate(
            &mut self,
            _: &[GenerateRequest],
            _: &mut dyn FnMut(usize, Vec<String>) -> ControlFlow<()>,
        ) -> Result<(), ModelError> {
            Ok(())
        }
    }
}
