//! Guests of a few instructions, as ELF kernels.

/// Writes `abc…zabc…` to the serial port, one letter about every 10 ms where KVM emulates, and much faster where it works.
#[rustfmt::skip]
pub const LETTERS: &[u8] = &[
    0xba, 0xf8, 0x03, 0x00, 0x00, //       mov edx, 0x3f8
    0xb3, b'a',                   //       mov bl, 'a'
    0x88, 0xd8,                   // next: mov al, bl
    0xee,                         //       out dx, al
    0xfe, 0xc3,                   //       inc bl
    0x80, 0xfb, b'z' + 1,         //       cmp bl, 'z' + 1
    0x75, 0x02,                   //       jne wait
    0xb3, b'a',                   //       mov bl, 'a'
    0xb9, 0x88, 0x13, 0x00, 0x00, // wait: mov ecx, 5000
    0xff, 0xc9,                   // spin: dec ecx
    0x75, 0xfc,                   //       jnz spin
    0xeb, 0xe9,                   //       jmp next
];

/// Resets the machine by its keyboard controller, as Linux does with `reboot=k`.
#[rustfmt::skip]
pub const RESET: &[u8] = &[
    0xb0, 0xfe, //       mov al, 0xfe
    0xe6, 0x64, //       out 0x64, al
    0xf4,       // halt: hlt
    0xeb, 0xfd, //       jmp halt
];

/// An ELF executable with one segment, at 16 MiB, which is where Firecracker jumps to, in long mode.
pub fn elf(code: &[u8]) -> Vec<u8> {
    const BASE: u64 = 16 << 20;
    const OFFSET: u64 = 64 + 56;
    let mut elf = Vec::new();
    elf.extend(b"\x7fELF\x02\x01\x01\x00\0\0\0\0\0\0\0\0");
    elf.extend(2u16.to_le_bytes()); // executable
    elf.extend(62u16.to_le_bytes()); // x86_64
    elf.extend(1u32.to_le_bytes());
    elf.extend(BASE.to_le_bytes()); // entry
    elf.extend(64u64.to_le_bytes()); // program headers
    elf.extend(0u64.to_le_bytes());
    elf.extend(0u32.to_le_bytes());
    for half in [64u16, 56, 1, 0, 0, 0] {
        elf.extend(half.to_le_bytes());
    }
    elf.extend(1u32.to_le_bytes()); // load
    elf.extend(7u32.to_le_bytes()); // all rights
    for word in [OFFSET, BASE, BASE, code.len() as u64, code.len() as u64, 0x1000] {
        elf.extend(word.to_le_bytes());
    }
    elf.extend(code);
    elf
}
