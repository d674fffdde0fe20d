//! Rows become the right tokens, and the right ones of them are learnt.

use super::*;

#[test]
fn alpaca_and_vicuna_supervise_the_answer_and_its_end() {
    let row = instruction("Add 1 and 1.", "2");
    let alpaca = Encoder::new(Template::Alpaca, &TOY, 500).unwrap();
    let example = alpaca.example(&row).unwrap().unwrap();
    assert_eq!(
        decode(&example.ids),
        "<s>Below is an instruction that describes a task. Write a response that appropriately \
         completes the request.\n\n### Instruction:\nAdd 1 and 1. \n\n### Response: 2<e>"
    );
    assert_eq!(learnt(&example), " 2<e>");
    let prompt = alpaca.prompt(&row).unwrap();
    assert!(example.ids.starts_with(&prompt) && decode(&prompt).ends_with("### Response:"));

    let vicuna = Encoder::new(Template::Vicuna, &TOY, 500).unwrap();
    let example = vicuna.example(&row).unwrap().unwrap();
    assert!(decode(&example.ids).ends_with("USER: Add 1 and 1. ASSISTANT: 2<e>"));
    assert_eq!(learnt(&example), " 2<e>");
}

#[test]
fn a_chat_supervises_every_assistant_turn_with_its_end_and_nothing_else() {
    let row = record(Content::Chat {
        messages: vec![
            Message::new(Role::System, "s"),
            Message::new(Role::User, "say yes"),
            Message::new(Role::Assistant, " yes "),
            Message::new(Role::User, "again: yes"),
            Message::new(Role::Assistant, "yes"),
            Message::new(Role::User, "never answered"),
        ],
    });
    let chat = Encoder::new(Template::Chat, &TOY, 500).unwrap();
    let example = chat.example(&row).unwrap().unwrap();
    assert_eq!(learnt(&example), "yes<e>yes<e>");
    assert_eq!(
        decode(&example.ids),
        "<s>[system]\ns<e>\n[user]\nsay yes<e>\n[assistant]\nyes<e>\n[user]\nagain: yes<e>\n[assistant]\nyes<e>"
    );
    let vicuna = Encoder::new(Template::Vicuna, &TOY, 500).unwrap();
    assert_eq!(learnt(&vicuna.example(&row).unwrap().unwrap()), "  yes <e> yes<e>");
    let alpaca = Encoder::new(Template::Alpaca, &TOY, 500).unwrap();
    assert!(matches!(alpaca.example(&row), Err(EncodeError::SeveralTurns)));
}

#[test]
fn an_example_cut_before_its_answer_is_dropped() {
    let row = instruction("\n### Response: not the answer", "2");
    let full = Encoder::new(Template::Alpaca, &TOY, 500).unwrap().example(&row).unwrap().unwrap();
    // A blank, the digit and the end token.
    let answer = full.ids.len() - 3;
    for (seq_len, left) in [(answer, None), (answer + 1, Some(" ")), (answer + 2, Some(" 2"))] {
        let encoder = Encoder::new(Template::Alpaca, &TOY, seq_len).unwrap();
        let example = encoder.example(&row).unwrap();
        assert_eq!(example.as_ref().map(learnt).as_deref(), left);
    }
    assert!(matches!(Encoder::new(Template::Alpaca, &TOY, 2), Err(EncodeError::SeqLen(2))));
}

#[test]
fn the_begin_token_stands_once_in_front_where_the_model_wants_it() {
    for template in Template::ALL {
        let example = Encoder::new(template, &TOY, 500).unwrap().example(&instruction("a", "b"));
        let ids = example.unwrap().unwrap().ids;
        assert_eq!(ids.iter().filter(|id| **id == 2).count(), 1, "{template}");
        assert_eq!(ids[0], 2);
    }
    let plain = Characters { bos: false };
    let example = Encoder::new(Template::Vicuna, &plain, 500).unwrap();
    let example = example.example(&instruction("a", "b")).unwrap().unwrap();
    assert_ne!(example.ids[0], 2);
    assert_eq!(example.ids.len(), example.supervised.len());
}

#[test]
fn a_pair_is_a_shared_prompt_and_two_whole_answers() {
    let row = preference("q", "yes, so", "yes, no");
    for (template, prompt, answers) in [
        (Template::Vicuna, "USER: q ASSISTANT:", [" yes, so<e>", " yes, no<e>"]),
        (Template::Alpaca, "q \n\n### Response:", [" yes, so<e>", " yes, no<e>"]),
        (Template::Chat, "[user]\nq<e>\n[assistant]\n", ["yes, so<e>", "yes, no<e>"]),
    ] {
        let encoder = Encoder::new(template, &TOY, 500).unwrap();
        let pair = encoder.pair(&row).unwrap().unwrap();
        assert!(decode(&pair.prompt).ends_with(prompt), "{template}: {}", decode(&pair.prompt));
        assert_eq!([decode(&pair.chosen), decode(&pair.rejected)], answers);
        assert_eq!(encoder.prompt(&row).unwrap(), pair.prompt);
        assert!(matches!(encoder.example(&row), Err(EncodeError::IsPreference)));
        assert!(matches!(encoder.pair(&instruction("a", "b")), Err(EncodeError::NoPreference)));
    }
}

#[test]
fn a_pair_too_long_keeps_the_prompts_end_and_the_answers_beginnings() {
    let row = preference(&"x".repeat(50), "abcdefgh", "abcdefgz");
    let pair = |seq_len| Encoder::new(Template::Vicuna, &TOY, seq_len).unwrap().pair(&row).unwrap();
    let cut = pair(40).unwrap();
    assert_eq!(cut.prompt.len() + cut.chosen.len(), 40);
    assert_eq!(decode(&cut.prompt), format!("<s>{} ASSISTANT:", "x".repeat(18)));
    assert_eq!(decode(&cut.chosen), " abcdefgh<e>");
    let cut = pair(18).unwrap();
    assert_eq!((decode(&cut.prompt).as_str(), cut.chosen.len()), ("<s>SISTANT:", 9));
    assert_eq!(pair(16), None, "without their last characters the answers are the same");
}
