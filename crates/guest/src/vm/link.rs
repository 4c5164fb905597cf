//! How what a function says on a connection is carried to the host: in frames, the last of which is empty.
//!
//! A function may say all that it has to say, shut down its side, and still wait for the answer. The vsock devices of both
//! engines have no way of telling the host so: they know connections that are open, and those that are closed. What the
//! host says comes as it is; when it shuts down its side, the connection ends.
//!
//! A frame is its length in bytes (4, big-endian) and that much of what is carried.

/// Bytes before what is carried.
pub const HEAD: usize = 4;

/// The head of a frame with so many bytes.
pub fn head(length: usize) -> [u8; HEAD] {
    u32::try_from(length).expect("a buffer is smaller than 4 GiB").to_be_bytes()
}

/// Takes the heads out of what arrives, in pieces of any length. Whatever arrives means something; nothing is kept.
#[derive(Debug, Default)]
pub struct Decoder {
    head: [u8; HEAD],
    /// How much of the head has arrived.
    known: usize,
    /// What is still to come of this frame.
    left: usize,
    over: bool,
}

impl Decoder {
    /// Moves what is carried to the beginning of `bytes`, and says how much it is. After the end it is nothing.
    pub fn decode(&mut self, bytes: &mut [u8]) -> usize {
        let (mut from, mut to) = (0, 0);
        while from < bytes.len() && !self.over {
            if self.left > 0 {
                let length = self.left.min(bytes.len() - from);
                bytes.copy_within(from..from + length, to);
                (from, to) = (from + length, to + length);
                self.left -= length;
                continue;
            }
            self.head[self.known] = bytes[from];
            from += 1;
            self.known = (self.known + 1) % HEAD;
            if self.known == 0 {
                self.left = u32::from_be_bytes(self.head) as usize;
                self.over = self.left == 0;
            }
        }
        to
    }

    /// Whether the function has said all that it had to say.
    pub fn over(&self) -> bool {
        self.over
    }
}

/// Whatever arrives: must mean the same in whatever pieces, and never more than there is. For the fuzzer.
#[cfg(fuzzing)]
pub fn decode_anything(arrived: &[u8], piece: usize) {
    assert_eq!(decoded(arrived, piece.max(1)), decoded(arrived, usize::MAX));
}

#[cfg(any(test, fuzzing))]
fn decoded(bytes: &[u8], piece: usize) -> (Vec<u8>, bool) {
    let mut decoder = Decoder::default();
    let mut carried = Vec::new();
    for piece in bytes.chunks(piece) {
        let mut piece = piece.to_vec();
        let length = decoder.decode(&mut piece);
        carried.extend_from_slice(&piece[..length]);
    }
    (carried, decoder.over())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_are_taken_apart_however_they_arrive() {
        let long = vec![b'x'; 300];
        let mut bytes = Vec::new();
        for part in [&b"GET"[..], b" /", &long] {
            bytes.extend(head(part.len()));
            bytes.extend_from_slice(part);
        }
        let carried = [&b"GET /"[..], &long].concat();
        for piece in 1..400 {
            assert_eq!(decoded(&bytes, piece), (carried.clone(), false), "in pieces of {piece}");
        }
        bytes.extend(head(0));
        bytes.extend(b"more than there is to say");
        for piece in 1..400 {
            assert_eq!(decoded(&bytes, piece), (carried.clone(), true), "in pieces of {piece}");
        }
    }

    #[test]
    fn a_frame_that_never_ends_takes_no_memory() {
        let (carried, over) = decoded(&[0xff; 100], 7);
        assert_eq!((carried, over), (vec![0xff; 96], false));
    }
}
