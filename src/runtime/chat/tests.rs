use super::*;

#[test]
fn chatml_renders() {
    let t = ChatTemplate::builtin("chatml", "", "").unwrap();
    let m = [ChatMessage::system("S"), ChatMessage::user("U")];
    let want = "<|im_start|>system\nS<|im_end|>\n<|im_start|>user\nU<|im_end|>\n<|im_start|>assistant\n";
    assert_eq!(t.render(&m, true).unwrap(), want);
}
