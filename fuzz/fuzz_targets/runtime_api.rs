//! Requests to the Runtime API and the Extensions API, as bytes on a connection.
#![no_main]

libfuzzer_sys::fuzz_target!(|input: (u16, &[u8])| {
    let (cut, sent) = input;
    worker::serve_anything(sent, usize::from(cut));
});
