//! Prompts of each data set from a question in its own fields, written out by the harness's rules.

use crate::eval::tasks::{Goal, Item, READY, Task};

fn item(task: &str, json: &str) -> Item {
    let task = Task::by_name(task).unwrap_or(&READY);
    task.item(&serde_json::from_str(json).unwrap()).unwrap()
}

/// Asserts the contexts and continuations of a question and which of them is right.
fn check(item: &Item, expected: &[(&str, &str)], right: usize) {
    let got: Vec<_> = item.requests.iter().map(|r| (r.context.as_str(), r.continuation.as_str())).collect();
    assert_eq!(got, expected);
    assert!(matches!(item.goal, Goal::Choice { gold, .. } if gold == right), "{:?}", item.goal);
}

#[test]
fn hellaswag() {
    let json = r#"{"activity_label": "Home", "ctx_a": "A [header] How to clean [title] Sweep.", "ctx_b": "the MAN",
        "endings": ["goes [substeps] home.", " [x", "b", "c"], "label": "2", "ctx": "unused"}"#;
    let context = "Home: A How to clean. Sweep. The man";
    check(&item("hellaswag", json), &[(context, " goes home."), (context, " [x"), (context, " b"), (context, " c")], 2);
}

#[test]
fn questions_with_labelled_choices() {
    let hub =
        r#"{"question": "Why?", "choices": {"text": ["so", "no", "oh"], "label": ["1", "2", "3"]}, "answerKey": "3"}"#;
    let context = "Question: Why?\nAnswer:";
    check(&item("arc_easy", hub), &[(context, " so"), (context, " no"), (context, " oh")], 2);
    let original = r#"{"question": {"stem": "Why?", "choices": [{"text": "so", "label": "A"}, {"text": "no", "label": "B"}]},
        "answerKey": "B"}"#;
    check(&item("arc_challenge", original), &[(context, " so"), (context, " no")], 1);
    check(&item("openbookqa", original), &[("Why?", " so"), ("Why?", " no")], 1);
    let context = "Question: Why?\nA. so\nB. no\nAnswer:";
    check(&item("commonsense_qa", original), &[(context, " A"), (context, " B")], 1);
}

#[test]
fn winogrande_scores_what_follows_the_blank() {
    let json =
        r#"{"sentence": "Ann thanked Bea because _ had helped.", "option1": "Ann", "option2": "Bea", "answer": "2"}"#;
    let item = item("winogrande", json);
    let rest = " had helped.";
    check(&item, &[("Ann thanked Bea because Ann", rest), ("Ann thanked Bea because Bea", rest)], 1);
    assert!(matches!(&item.goal, Goal::Choice { lengths, .. } if lengths.is_empty()));
}

#[test]
fn other_data_sets() {
    let json = r#"{"goal": "cut bread", "sol1": "knife", "sol2": "spoon", "label": 0}"#;
    let context = "Question: cut bread\nAnswer:";
    check(&item("piqa", json), &[(context, " knife"), (context, " spoon")], 0);

    let json = r#"{"passage": "Ice floats.", "question": "does ice float", "answer": true}"#;
    let context = "Ice floats.\nQuestion: does ice float?\nAnswer:";
    check(&item("boolq", json), &[(context, " no"), (context, " yes")], 1);

    let json = r#"{"premise": "It rained. ", "question": "effect", "choice1": "We got wet.", "choice2": "I sang.", "label": 0}"#;
    check(&item("copa", json), &[("It rained therefore", " we got wet."), ("It rained therefore", " i sang.")], 0);

    let json = r#"{"question": "2+2?", "subject": "high_school", "choices": ["3", "4"], "answer": 1}"#;
    let context =
        "The following are multiple choice questions (with answers) about high school.\n\n2+2?\nA. 3\nB. 4\nAnswer:";
    check(&item("mmlu", json), &[(context, " A"), (context, " B")], 1);

    let json = r#"{"sentence_good": "Cats sleep.", "sentence_bad": "Cats sleeps."}"#;
    check(&item("blimp", json), &[("", " Cats sleep."), ("", " Cats sleeps.")], 0);

    let json = r#"{"support": "", "question": "q", "distractor1": "a", "distractor2": "b", "distractor3": "c", "correct_answer": "d"}"#;
    let context = "\nQuestion: q\nAnswer:";
    check(&item("sciq", json), &[(context, " a"), (context, " b"), (context, " c"), (context, " d")], 3);

    let json =
        r#"{"context": "Jo ran.", "question": "Why?", "answerA": "x", "answerB": "y", "answerC": "z", "label": "3"}"#;
    let context = "Q: Jo ran. Why?\nA:";
    check(&item("social_iqa", json), &[(context, " x"), (context, " y"), (context, " z")], 2);
}

#[test]
fn truthfulqa_has_its_primer_in_both_forms() {
    for targets in [r#"{"choices": ["yes", "no"], "labels": [1, 0]}"#, r#"{"yes": 1, "no": 0}"#] {
        let item = item("truthfulqa", &format!(r#"{{"question": "Is it?", "mc1_targets": {targets}}}"#));
        let context = &item.requests[0].context;
        assert!(context.starts_with("Q: What is human life expectancy in the United States?\nA: Human life"));
        assert!(context.ends_with("Barcelona, Spain.\n\nQ: Is it?\nA:"), "{context}");
        assert_eq!(item.requests[1].continuation, " no");
    }
}

#[test]
fn words_to_be_guessed() {
    let expected = Item::word("He opened the", "door");
    assert_eq!(item("lambada", r#"{"text": "He opened the door"}"#), expected);
    assert_eq!(item("lambada", r#"{"context": "He opened the", "target": "door"}"#), expected);
    assert_eq!(expected.requests[0].continuation, " door");
}

#[test]
fn answers_are_numbers_in_any_form_or_letters() {
    for (answer, right) in [("1", 1), ("1.0", 1), ("\"1\"", 1), ("\"B\"", 1), ("true", 1), ("0", 0), ("\" A \"", 0)] {
        let json = format!(r#"{{"context": "x", "choices": ["a", "b"], "answer": {answer}, "id": 7}}"#);
        check(&item("questions", &json), &[("x", " a"), ("x", " b")], right);
    }
}

#[test]
fn mistakes_name_the_field() {
    for (task, json, named) in [
        ("piqa", r#"{"goal": "x", "sol1": "a"}"#, "no field 'sol2', only goal, sol1"),
        ("hellaswag", r#"{"ctx": "x"}"#, "'activity_label'"),
        (
            "arc_easy",
            r#"{"question": "x", "choices": {"text": ["a"], "label": ["A"]}, "answerKey": "B"}"#,
            "'answerKey' is 'B'",
        ),
        ("boolq", r#"{"passage": "x", "question": "y", "label": -1}"#, "no answers"),
        ("winogrande", r#"{"sentence": "x", "option1": "a", "option2": "b", "answer": "1"}"#, "'_'"),
        ("copa", r#"{"premise": "x", "question": "why", "choice1": "a", "choice2": "b", "label": 0}"#, "'why'"),
        ("questions", r#"{"context": "x"}"#, "'choices'"),
        ("questions", r#"{"context": "x", "choices": ["a", "b"]}"#, "no field 'answer'"),
        (
            "questions",
            r#"{"context": "x", "choices": ["a", "b"], "answer": "b"}"#,
            "'answer' is \"b\", expected the number",
        ),
        (
            "questions",
            r#"{"context": "x", "choices": ["a", "b"], "answer": 0.5}"#,
            "'answer' is 0.5, expected the number",
        ),
        ("questions", r#"["x"]"#, "expected an object"),
    ] {
        let task = Task::by_name(task).unwrap_or(&READY);
        let e = task.item(&serde_json::from_str(json).unwrap()).unwrap_err();
        assert!(e.contains(named), "{e}");
    }
}
