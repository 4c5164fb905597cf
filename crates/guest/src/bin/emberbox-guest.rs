//! The program that a microVM's kernel starts.

fn main() {
    guest::vm::agent::main()
}
