//! The frames in which a microVM carries its function's connections to the host.
#![no_main]

libfuzzer_sys::fuzz_target!(|input: (u16, &[u8])| {
    let (piece, arrived) = input;
    guest::vm::link::decode_anything(arrived, usize::from(piece));
});
