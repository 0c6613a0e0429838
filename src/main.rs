//! The `lisa-cpp` command.
fn main() {}
