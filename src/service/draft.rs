//! A new disk in the making: a sparse raw file of a transaction, formatted, mounted and filled, before it is sealed into a base.
//!
//! Refuses to know what is put on it. Invariant: its loop device is named after its transaction, so that the next start finds what a killed
//! process left in the kernel, and takes away only what no living transaction owns.

use super::ServiceError;
use crate::blockio::FileIo;
use crate::ids::StoreId;
use crate::kernel::{KernelError, loops, mounts};
use crate::store::{Store, Txn};
use crate::sys;
use crate::units::Bytes;
use std::fs::{self, File, OpenOptions};
use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

const PATIENCE: Duration = Duration::from_secs(10);
const LOOP_MAJOR: u32 = 7;

#[derive(Debug, thiserror::Error)]
pub enum DraftError {
    #[error("{doing} {}", path.display())]
    Io {
        doing: &'static str,
        path: PathBuf,
        source: io::Error,
    },
    #[error("{tool} on a disk of {size}: {said}")]
    Mkfs { tool: &'static str, size: Bytes, said: String },
    #[error("what was written is not all on {}", path.display())]
    Lost { path: PathBuf, source: io::Error },
    #[error(transparent)]
    Kernel(#[from] KernelError),
}

/// The raw file.
pub struct Draft {
    pub path: PathBuf,
    pub size: Bytes,
}

impl Draft {
    pub fn new(txn: &Txn, size: Bytes) -> Result<Draft, DraftError> {
        let path = txn.dir().join("disk.raw");
        let failed = |source| DraftError::Io {
            doing: "make",
            path: path.clone(),
            source,
        };
        let file = File::create_new(&path).map_err(failed)?;
        file.set_len(size.0).map_err(failed)?;
        Ok(Draft { path, size })
    }

    /// Puts an empty file system on it. The file is all zeros, so nothing that must be zero is written.
    pub fn format(&self, file_system: &str) -> Result<(), DraftError> {
        let (tool, options): (&'static str, &[&str]) = match file_system {
            "ext4" => (
                "mkfs.ext4",
                &["-q", "-F", "-b", "4096", "-E", "assume_storage_prezeroed=1,nodiscard"],
            ),
            "xfs" => ("mkfs.xfs", &["-q", "-f", "-K", "-b", "size=4096"]),
            _ => return Ok(()),
        };
        let ran = Command::new(tool).args(options).arg(&self.path).output();
        let output = ran.map_err(|source| DraftError::Io {
            doing: "run",
            path: tool.into(),
            source,
        })?;
        if output.status.success() {
            return Ok(());
        }
        let said = String::from_utf8_lossy(&output.stderr);
        let said = said
            .lines()
            .find(|line| !line.trim().is_empty())
            .unwrap_or("it says nothing")
            .trim();
        Err(DraftError::Mkfs {
            tool,
            size: self.size,
            said: said.into(),
        })
    }

    /// Mounts it for filling. Nothing of it needs to survive a power cut before it is sealed: no barriers.
    pub fn mount(&self, store: &Store, txn: &Txn, file_system: &str) -> Result<Mounted, DraftError> {
        let key = txn_key(txn);
        let place = store.run_dir().join(format!("draft-{key}"));
        let dir = place.join("mnt");
        fs::create_dir_all(&dir).map_err(|source| DraftError::Io {
            doing: "make",
            path: dir.clone(),
            source,
        })?;
        let name = loop_name(store.id(), &key);
        let wanted = loops::Attach {
            file: &self.path,
            name: &name,
            read_only: false,
            direct_io: false,
        };
        let device = loops::attach(&wanted)?;
        let mut mounted = Mounted {
            place,
            name: name.clone(),
            file: self.path.clone(),
            dir: dir.clone(),
            device: device.number,
            watch: None,
            is_mounted: false,
            is_attached: true,
        };
        let open = |path: &Path| {
            File::open(path).map_err(|source| DraftError::Io {
                doing: "open",
                path: path.into(),
                source,
            })
        };
        let below = open(&device.path())?;
        mounts::mount_device(&device.path(), &dir, file_system, Some("nobarrier,noinit_itable"), false)?;
        mounted.is_mounted = true;
        mounted.watch = Some(Watch { root: open(&dir)?, below });
        Ok(mounted)
    }

    /// The file, for reading what has been put on it.
    pub fn open(&self) -> Result<FileIo, DraftError> {
        OpenOptions::new()
            .read(true)
            .open(&self.path)
            .map(FileIo)
            .map_err(|source| DraftError::Io {
                doing: "open",
                path: self.path.clone(),
                source,
            })
    }
}

/// A mounted draft; dropped early, it is unmounted as well as that goes.
pub struct Mounted {
    place: PathBuf,
    /// The device's name.
    name: String,
    file: PathBuf,
    pub dir: PathBuf,
    device: u32,
    watch: Option<Watch>,
    is_mounted: bool,
    is_attached: bool,
}

/// What the kernel could not write after the writer had gone on is told to nobody but to those who had a file open since before: one of the file
/// system, and the device under it for what an unmount writes.
struct Watch {
    root: File,
    below: File,
}

impl Mounted {
    /// Unmounts; afterwards all of the file system is in the raw file. Errors: [`DraftError::Lost`], as when the store's disk is full.
    pub fn finish(mut self) -> Result<(), DraftError> {
        let watch = self.watch.take().expect("a mounted draft is watched");
        let written = rustix::fs::syncfs(&watch.root).map_err(io::Error::from);
        drop(watch.root);
        self.unmount()?;
        // Not flushed: a power cut ends the transaction anyway.
        let written = written.and_then(|()| sys::block::write_back(&watch.below));
        drop(watch.below);
        self.take_down()?;
        written.map_err(|error| self.lost(error))
    }

    /// The device can only say that there was an error; whether that was for want of room shows when some is asked for.
    fn lost(&self, error: io::Error) -> DraftError {
        let more = || -> io::Result<()> {
            let file = OpenOptions::new().write(true).open(&self.file)?;
            let end = file.metadata()?.len();
            Ok(rustix::fs::fallocate(&file, rustix::fs::FallocateFlags::KEEP_SIZE, end, 1 << 20)?)
        };
        let is_full = |found: &io::Error| found.kind() == io::ErrorKind::StorageFull;
        DraftError::Lost {
            path: self.file.clone(),
            source: more().err().filter(is_full).unwrap_or(error),
        }
    }

    fn unmount(&mut self) -> Result<(), DraftError> {
        if self.is_mounted {
            mounts::unmount(&self.dir, PATIENCE)?;
            self.is_mounted = false;
        }
        Ok(())
    }

    fn take_down(&mut self) -> Result<(), DraftError> {
        self.watch = None;
        self.unmount()?;
        if self.is_attached {
            loops::detach(self.device, &self.name, PATIENCE)?;
            self.is_attached = false;
        }
        remove_place(&self.place);
        Ok(())
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        if (self.is_mounted || self.is_attached)
            && let Err(error) = self.take_down()
        {
            tracing::warn!(cause = %error, dir = %self.dir.display(), "an unfinished disk stays mounted until the next start");
        }
    }
}

/// Takes away the mounts and loops of drafts whose transaction is no more. Run after the store has recovered: a transaction that lives has its folder.
pub fn sweep(store: &Store) -> Result<(), ServiceError> {
    let places = drafts(&store.run_dir());
    if places.is_empty() {
        return Ok(());
    }
    let devices = loops::list().map_err(DraftError::from)?;
    let mounted = mounts::list().map_err(DraftError::from)?;
    for (key, place) in places {
        if store.root().join("tmp").join(&key).exists() {
            continue;
        }
        let name = loop_name(store.id(), &key);
        for device in devices.iter().filter(|device| device.name.as_deref() == Some(&name)) {
            let on_it = mounted.iter().rev().filter(|m| (m.major, m.minor) == (LOOP_MAJOR, device.number));
            for mount in on_it {
                mounts::unmount_lazily(&mount.dir).map_err(DraftError::from)?;
            }
            loops::detach_dead(device.number, &name, PATIENCE).map_err(DraftError::from)?;
            tracing::info!(device = device.number, "took away what a killed import left");
        }
        remove_place(&place);
    }
    Ok(())
}

fn drafts(run_dir: &Path) -> Vec<(String, PathBuf)> {
    let Ok(entries) = fs::read_dir(run_dir) else { return Vec::new() };
    let found = entries.filter_map(Result::ok).filter_map(|entry| {
        let key = entry.file_name().to_str()?.strip_prefix("draft-")?.to_string();
        Some((key, entry.path()))
    });
    found.collect()
}

fn txn_key(txn: &Txn) -> String {
    let dir = txn.dir();
    let name = dir.file_name().expect("a transaction has a folder of its own");
    name.to_string_lossy().into_owned()
}

fn loop_name(store: StoreId, key: &str) -> String {
    format!("blockbt-{store}-draft-{key}")
}

/// Only empty directories go: nothing that is still mounted is ever looked into.
fn remove_place(place: &Path) {
    for dir in [&place.join("mnt"), place] {
        if let Err(error) = fs::remove_dir(dir)
            && error.kind() != io::ErrorKind::NotFound
        {
            tracing::warn!(dir = %dir.display(), cause = %error, "a run directory stays");
        }
    }
}
