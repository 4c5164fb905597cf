//! The disks of a VM, and how they become others while it waits for a function.
//!
//! A VM in waiting has disks without contents. When it is needed, the host puts a function's in their place. Nobody has
//! opened any until then, so there is nothing in memory of what they were.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use crate::protocol::{During, Failure};

/// The kernel's driver of disks.
const DRIVER: &str = "/sys/bus/virtio/drivers/virtio_blk";
/// A machine that tells its guest of another disk does so within milliseconds; emulated, on a busy host, seconds.
const PATIENCE: Duration = Duration::from_secs(5);
/// What the kernel counts sizes in, in bytes.
const SECTOR: u64 = 512;

/// The kernel's name of a drive: by its serial number if it has one, or else by what the host calls it.
fn name(drive: &str) -> io::Result<String> {
    for entry in fs::read_dir("/sys/block")? {
        let entry = entry?;
        let serial = fs::read_to_string(entry.path().join("serial")).unwrap_or_default();
        if serial.trim() == drive {
            return Ok(entry.file_name().to_string_lossy().into_owned());
        }
    }
    // A name only, so that it cannot lead out of a directory.
    Ok(drive.replace('/', "-"))
}

/// The device of a drive.
pub fn device(drive: &str) -> Result<PathBuf, Failure> {
    let path = name(drive).map(|name| Path::new("/dev").join(name));
    let there = path.and_then(|path| if path.exists() { Ok(path) } else { Err(io::ErrorKind::NotFound.into()) });
    there.during(format!("find the drive {drive}"))
}

/// Takes all drives from their driver, whose it is to look at what they are. Returns their devices, in order.
pub fn detach() -> Result<Vec<String>, Failure> {
    let devices = || -> io::Result<Vec<String>> {
        let names = fs::read_dir(DRIVER)?.map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned()));
        names.filter(|name| name.as_ref().map_or(true, |name| name.starts_with("virtio"))).collect()
    };
    let mut devices = devices().during("look for drives")?;
    devices.sort_by_key(|device| (device.len(), device.clone()));
    for device in &devices {
        fs::write(format!("{DRIVER}/unbind"), device).during(format!("let go of the drive {device}"))?;
    }
    Ok(devices)
}

/// Gives them back, and so names as before.
pub fn attach(devices: &[String]) -> Result<(), Failure> {
    for device in devices {
        fs::write(format!("{DRIVER}/bind"), device).during(format!("take the drive {device}"))?;
    }
    Ok(())
}

/// Waits until the kernel knows each of these drives by its size in bytes.
pub fn await_exchanged(drives: &[(String, u64)]) -> Result<(), Failure> {
    let deadline = Instant::now() + PATIENCE;
    for (drive, bytes) in drives {
        while size(drive).during(format!("look at the drive {drive}"))? != bytes / SECTOR {
            if Instant::now() > deadline {
                let late = io::Error::from_raw_os_error(libc::ETIMEDOUT);
                return Err(late).during(format!("wait until the drive {drive} has {bytes} bytes"));
            }
            std::thread::sleep(Duration::from_millis(1));
        }
    }
    Ok(())
}

/// In sectors.
fn size(drive: &str) -> io::Result<u64> {
    let text = fs::read_to_string(format!("/sys/block/{}/size", name(drive)?))?;
    text.trim().parse().map_err(io::Error::other)
}
