//! What a function's processes write: lines, and the frames of AWS's runtime clients.
#![no_main]

libfuzzer_sys::fuzz_target!(|input: (u16, &[u8])| {
    let (piece, written) = input;
    worker::split_anything(written, usize::from(piece));
});
