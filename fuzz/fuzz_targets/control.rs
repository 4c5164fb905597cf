//! The control connection of a microVM: what its agent says, or whoever has taken its place.
#![no_main]

libfuzzer_sys::fuzz_target!(|input: (u16, &[u8])| {
    let (piece, said) = input;
    sandbox::microvm::hear_anything(said, usize::from(piece));
});
