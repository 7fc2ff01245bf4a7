//! A disk as a sparse raw file. Knows no file system.
//!
//! Invariant: what is not written reads as zeros, as the target is new or has been cut to nothing.

use crate::blockio::BlockDevice;
use crate::units::Bytes;
use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;

const BUFFER: u64 = 1 << 20;
/// Zeros are looked for in steps of the host's usual block.
const STEP: usize = 4096;

/// Writes the `ranges` of `disk` that may hold data to `target` and gives it the disk's size.
///
/// Shape: `progress` is told the bytes read so far. Not synced.
pub fn export(
    disk: &dyn BlockDevice,
    ranges: impl Iterator<Item = Range<Bytes>>,
    target: &File,
    progress: &mut dyn FnMut(u64),
) -> io::Result<()> {
    target.set_len(0)?;
    target.set_len(disk.size().0)?;
    let mut buffer = vec![0; BUFFER as usize];
    let mut done = 0;
    for range in ranges {
        let mut at = range.start.0;
        while at < range.end.0 {
            let part = &mut buffer[..(range.end.0 - at).min(BUFFER) as usize];
            disk.read(Bytes(at), part)?;
            write_data(target, part, at)?;
            at += part.len() as u64;
            done += part.len() as u64;
            progress(done);
        }
    }
    Ok(())
}

/// Writes each run of steps that are not all zeros.
fn write_data(target: &File, part: &[u8], at: u64) -> io::Result<()> {
    let mut run = 0..0;
    for (i, step) in part.chunks(STEP).enumerate() {
        let start = i * STEP;
        if step.iter().any(|&b| b != 0) {
            run = if run.end == start {
                run.start..start + step.len()
            } else {
                start..start + step.len()
            };
            let next = part.get(run.end..(run.end + STEP).min(part.len())).unwrap_or_default();
            if next.iter().all(|&b| b == 0) {
                target.write_all_at(&part[run.clone()], at + run.start as u64)?;
            }
        }
    }
    Ok(())
}
