//! Writes zips byte by byte, honest ones and others.
#![allow(dead_code, reason = "each test binary uses its part")]

use bytes::Bytes;
use packages::{Config, Limits, Packages, Storage};
use tempfile::TempDir;

/// One entry, stored without compression.
#[derive(Clone, Debug)]
pub struct Entry {
    pub name: Vec<u8>,
    pub data: Vec<u8>,
    /// Unix mode with type bits; 0 where the zip carries none.
    pub mode: u32,
    /// What the directory claims, if it lies.
    pub claimed_size: Option<u32>,
}

pub fn file(name: &str, data: &str) -> Entry {
    entry(name, data.as_bytes(), 0o100_644)
}

pub fn entry(name: impl AsRef<[u8]>, data: &[u8], mode: u32) -> Entry {
    Entry { name: name.as_ref().to_vec(), data: data.to_vec(), mode, claimed_size: None }
}

pub fn symlink(name: &str, target: &str) -> Entry {
    entry(name, target.as_bytes(), 0o120_777)
}

pub fn zip(entries: &[Entry]) -> Bytes {
    let mut out = Vec::new();
    let mut directory = Vec::new();
    for entry in entries {
        let offset = out.len() as u32;
        let size = entry.claimed_size.unwrap_or(entry.data.len() as u32);
        let mut common = Vec::new();
        common.extend(20u16.to_le_bytes()); // version needed
        common.extend(0x800u16.to_le_bytes()); // names are UTF-8
        common.extend(0u16.to_le_bytes()); // stored
        common.extend([0, 0, 0x21, 0x54]); // 2022-01-01
        common.extend(crc32(&entry.data).to_le_bytes());
        common.extend(size.to_le_bytes());
        common.extend(size.to_le_bytes());
        common.extend((entry.name.len() as u16).to_le_bytes());
        common.extend(0u16.to_le_bytes());
        out.extend(b"PK\x03\x04");
        out.extend(&common);
        out.extend(&entry.name);
        out.extend(&entry.data);
        directory.extend(b"PK\x01\x02");
        directory.extend(0x031eu16.to_le_bytes()); // made on Unix
        directory.extend(&common);
        directory.extend([0; 6]); // comment, disk, internal attributes
        directory.extend((entry.mode << 16).to_le_bytes());
        directory.extend(offset.to_le_bytes());
        directory.extend(&entry.name);
    }
    let start = out.len() as u32;
    out.extend(&directory);
    out.extend(b"PK\x05\x06\0\0\0\0");
    out.extend((entries.len() as u16).to_le_bytes());
    out.extend((entries.len() as u16).to_le_bytes());
    out.extend((directory.len() as u32).to_le_bytes());
    out.extend(start.to_le_bytes());
    out.extend(0u16.to_le_bytes());
    out.into()
}

fn crc32(data: &[u8]) -> u32 {
    !data.iter().fold(!0u32, |crc, byte| {
        (0..8).fold(crc ^ u32::from(*byte), |crc, _| (crc >> 1) ^ (0xedb8_8320 & (crc & 1).wrapping_neg()))
    })
}

pub fn open(dir: &TempDir) -> Packages {
    open_with(dir, Limits::default())
}

pub fn open_with(dir: &TempDir, limits: Limits) -> Packages {
    let dir = dir.path().join("packages");
    Packages::open(Config { dir, storage: Storage::Own, limits, s3: None, owner: None }).unwrap()
}
