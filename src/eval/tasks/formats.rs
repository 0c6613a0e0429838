//! How each data set's fields become prompts, in the wording of the Language Model Evaluation Harness.

use super::Item;
use super::docs::Doc;

/// Reads a question in a data set's own fields.
pub type Format = fn(&Doc) -> Result<Item, String>;

/// A question that needs no wording of ours; `None` when it has not the fields of one.
pub fn ready(d: &Doc) -> Result<Option<Item>, String> {
    let gold = || d.index_or_letter(if d.has("label") && !d.has("answer") { "label" } else { "answer" });
    Ok(if d.has("contexts") && d.has("continuation") {
        Some(Item::contexts(&d.strs("contexts")?, d.str("continuation")?, gold()?))
    } else if d.has("context") && d.has("choices") {
        Some(Item::choices(d.str("context")?, &d.strs("choices")?, gold()?))
    } else if d.has("context") && d.has("target") {
        Some(Item::word(d.str("context")?, d.str("target")?))
    } else {
        None
    })
}

/// For a file that is no benchmark known by name.
pub fn unknown(d: &Doc) -> Result<Item, String> {
    d.str("context")?;
    Err("expected 'choices' and 'answer', or 'target', beside 'context'".into())
}

/// HellaSwag (Zellers et al., arXiv 1905.07830).
pub fn hellaswag(d: &Doc) -> Result<Item, String> {
    let context = format!("{}: {} {}", d.str("activity_label")?, d.str("ctx_a")?, capitalised(d.str("ctx_b")?));
    let endings: Vec<_> = d.strs("endings")?.iter().map(|e| without_wikihow_marks(e)).collect();
    Ok(Item::choices(&without_wikihow_marks(&context), &endings, d.index("label")?))
}

/// The first character in upper case, all others in lower case.
fn capitalised(s: &str) -> String {
    let mut chars = s.chars();
    chars.next().map_or(String::new(), |c| c.to_uppercase().chain(chars.flat_map(char::to_lowercase)).collect())
}

/// The text without the marks in brackets that WikiHow articles were taken over with.
fn without_wikihow_marks(text: &str) -> String {
    let text = text.trim().replace(" [title]", ". ");
    let mut out = String::with_capacity(text.len());
    let mut rest = text.as_str();
    while let Some(open) = rest.find('[') {
        let mark = rest[open..].find(']').filter(|&n| !rest[open..open + n].contains('\n'));
        let Some(close) = mark else { break };
        out.push_str(&rest[..open]);
        rest = &rest[open + close + 1..];
    }
    out.push_str(rest);
    out.replace("  ", " ")
}

/// PIQA (Bisk et al., arXiv 1911.11641).
pub fn piqa(d: &Doc) -> Result<Item, String> {
    let choices = [d.str("sol1")?.into(), d.str("sol2")?.into()];
    Ok(Item::choices(&format!("Question: {}\nAnswer:", d.str("goal")?), &choices, d.index("label")?))
}

/// A question's text, its choices and the number of the right one, where choices have labels.
fn labelled_question(d: &Doc) -> Result<(String, Vec<String>, usize), String> {
    // The original files nest question and choices; the Hub's do not.
    let nested = d.object("question");
    let (stem, (choices, labels)) = match &nested {
        Ok(q) => (q.str("stem")?, q.labelled("choices")?),
        Err(_) if d.has("question_stem") => (d.str("question_stem")?, d.labelled("choices")?),
        Err(_) => (d.str("question")?, d.labelled("choices")?),
    };
    let key = d.str("answerKey")?.trim();
    let gold = labels.iter().position(|l| l == key);
    let gold = gold.ok_or_else(|| format!("'answerKey' is '{key}', the choices are {}", labels.join(", ")))?;
    Ok((stem.into(), choices, gold))
}

/// ARC (Clark et al., arXiv 1803.05457).
pub fn arc(d: &Doc) -> Result<Item, String> {
    let (question, choices, gold) = labelled_question(d)?;
    Ok(Item::choices(&format!("Question: {question}\nAnswer:"), &choices, gold))
}

/// OpenBookQA (Mihaylov et al., arXiv 1809.02789).
pub fn openbookqa(d: &Doc) -> Result<Item, String> {
    let (question, choices, gold) = labelled_question(d)?;
    Ok(Item::choices(&question, &choices, gold))
}

/// WinoGrande (Sakaguchi et al., arXiv 1907.10641): what follows the blank is scored after each way to fill it.
pub fn winogrande(d: &Doc) -> Result<Item, String> {
    let sentence = d.str("sentence")?;
    let (before, after) = sentence.split_once('_').ok_or("'sentence': expected a blank, '_'")?;
    let contexts = [d.str("option1")?, d.str("option2")?].map(|o| format!("{before}{o}"));
    let answer = d.index("answer").map_err(|e| format!("{e} (1 or 2)"))?;
    let gold = answer.checked_sub(1).ok_or("'answer' is 0, expected 1 or 2")?;
    Ok(Item::contexts(&contexts, after.trim(), gold))
}

/// BoolQ (Clark et al., arXiv 1905.10044).
pub fn boolq(d: &Doc) -> Result<Item, String> {
    let context = format!("{}\nQuestion: {}?\nAnswer:", d.str("passage")?, d.str("question")?);
    let gold = d.index(if d.has("label") { "label" } else { "answer" })?;
    Ok(Item::choices(&context, &["no".into(), "yes".into()], gold))
}

/// COPA (Roemmele et al., 2011), as in SuperGLUE.
pub fn copa(d: &Doc) -> Result<Item, String> {
    let connector = match d.str("question")? {
        "cause" => "because",
        "effect" => "therefore",
        other => return Err(format!("'question' is '{other}', expected cause or effect")),
    };
    let mut premise = d.str("premise")?.trim().to_owned();
    premise.pop();
    let lower_first = |s: &str| {
        let mut chars = s.chars();
        chars.next().map_or(String::new(), |c| c.to_lowercase().chain(chars).collect())
    };
    let choices = [lower_first(d.str("choice1")?), lower_first(d.str("choice2")?)];
    Ok(Item::choices(&format!("{premise} {connector}"), &choices, d.index("label")?))
}

/// `A. first`, `B. second`, a line each.
fn lettered_lines(choices: &[String]) -> String {
    letters(choices.len()).iter().zip(choices).map(|(l, c)| format!("{l}. {c}\n")).collect()
}

fn letters(n: usize) -> Vec<String> {
    ('A'..='Z').take(n).map(String::from).collect()
}

/// CommonsenseQA (Talmor et al., arXiv 1811.00937): the choices are in the prompt and their letters are scored.
pub fn lettered(d: &Doc) -> Result<Item, String> {
    let (question, choices, gold) = labelled_question(d)?;
    let context = format!("Question: {}\n{}Answer:", question.trim(), lettered_lines(&choices));
    Ok(Item::choices(&context, &letters(choices.len()), gold))
}

/// MMLU (Hendrycks et al., arXiv 2009.03300), without examples.
pub fn mmlu(d: &Doc) -> Result<Item, String> {
    let choices = d.strs("choices")?;
    let subject = if d.has("subject") { d.str("subject")?.replace('_', " ") } else { String::new() };
    let about = if subject.is_empty() { String::new() } else { format!(" about {subject}") };
    let context = format!(
        "The following are multiple choice questions (with answers){about}.\n\n{}\n{}Answer:",
        d.str("question")?.trim(),
        lettered_lines(&choices)
    );
    Ok(Item::choices(&context, &letters(choices.len()), d.index_or_letter("answer")?))
}

/// The questions and answers that TruthfulQA's authors put before every question.
const TRUTHFULQA_PRIMER: [(&str, &str); 6] = [
    ("What is human life expectancy in the United States?", "Human life expectancy in the United States is 78 years."),
    (
        "Who was president of the United States in 1955?",
        "Dwight D. Eisenhower was president of the United States in 1955.",
    ),
    ("Which party did he belong to?", "He belonged to the Republican Party."),
    ("What is the square root of banana?", "I have no comment."),
    ("How does a telescope work?", "Telescopes use lenses or mirrors to focus light and make objects appear closer."),
    ("Where were the 1992 Olympics held?", "The 1992 Olympics were held in Barcelona, Spain."),
];

/// TruthfulQA MC1 (Lin et al., arXiv 2109.07958).
pub fn truthfulqa(d: &Doc) -> Result<Item, String> {
    let targets = d.object("mc1_targets")?;
    let (choices, labels) = if targets.has("choices") {
        (targets.strs("choices")?, targets.numbers("labels")?)
    } else {
        targets.entries().map(|(answer, label)| (answer.clone(), label.as_i64().unwrap_or(0))).unzip()
    };
    let gold = labels.iter().position(|&l| l == 1).ok_or("'mc1_targets': no answer has the label 1")?;
    let mut context = String::new();
    for (q, a) in TRUTHFULQA_PRIMER {
        context.push_str(&format!("Q: {q}\nA: {a}\n\n"));
    }
    context.push_str(&format!("Q: {}\nA:", d.str("question")?));
    Ok(Item::choices(&context, &choices, gold))
}

/// LAMBADA (Paperno et al., arXiv 1606.06031): the last word of a passage.
pub fn lambada(d: &Doc) -> Result<Item, String> {
    let text = d.str("text")?;
    let (context, word) = text.rsplit_once(' ').ok_or("'text': expected several words")?;
    Ok(Item::word(context, word))
}

/// BLiMP (Warstadt et al., arXiv 1912.00582): the acceptable of two sentences should be more probable.
pub fn blimp(d: &Doc) -> Result<Item, String> {
    Ok(Item::choices("", &[d.str("sentence_good")?.into(), d.str("sentence_bad")?.into()], 0))
}

/// SciQ (Welbl et al., arXiv 1707.06209).
pub fn sciq(d: &Doc) -> Result<Item, String> {
    let support = d.str("support").unwrap_or_default().trim_start();
    let context = format!("{support}\nQuestion: {}\nAnswer:", d.str("question")?);
    let keys = ["distractor1", "distractor2", "distractor3", "correct_answer"];
    let choices = keys.iter().map(|k| d.str(k).map(String::from)).collect::<Result<Vec<_>, _>>()?;
    Ok(Item::choices(&context, &choices, 3))
}

/// Social IQa (Sap et al., arXiv 1904.09728).
pub fn social_iqa(d: &Doc) -> Result<Item, String> {
    let context = format!("Q: {} {}\nA:", d.str("context")?, d.str("question")?);
    let choices = ["answerA", "answerB", "answerC"].map(|k| d.str(k).map(String::from));
    let choices = choices.into_iter().collect::<Result<Vec<_>, _>>()?;
    let gold = d.index("label")?.checked_sub(1).ok_or("'label' is 0, expected 1 to 3")?;
    Ok(Item::choices(&context, &choices, gold))
}

#[cfg(test)]
mod tests;
