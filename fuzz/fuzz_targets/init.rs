//! What PID 1 of a process sandbox says to the helper on the host: one packet, one message.
#![no_main]

use guest::protocol::Message;

libfuzzer_sys::fuzz_target!(|packet: &[u8]| {
    if let Ok(message) = serde_json::from_slice::<Message>(packet) {
        // What was understood can be said again, and means the same.
        let again = serde_json::to_vec(&message).expect("a message is JSON");
        let back: Message = serde_json::from_slice(&again).expect("and is understood");
        assert_eq!(format!("{message:?}"), format!("{back:?}"));
    }
});
