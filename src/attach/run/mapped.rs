//! The steps of the kernel modes, done and undone.
//!
//! Invariant: what images share is touched only under the store's devices lock, and what somebody else uses by then stays.

use super::{Failed, PATIENCE, StepError, make_head, mount, steps_or_undo, write_state};
use crate::attach::mode::Choice;
use crate::attach::names::{DeviceId, LoopId};
use crate::attach::place::{Held, Place};
use crate::attach::plan::Step;
use crate::attach::recipe::{Numbers, Sealed, Top};
use crate::attach::seen::device_path;
use crate::attach::stop;
use crate::blockio::FileIo;
use crate::format::head::Head;
use crate::kernel::dm::{DevNo, Dm, New, SnapshotStatus};
use crate::kernel::{loops, mounts};
use crate::store::{ImageRecord, Store};
use crate::units::Bytes;
use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::io;
use std::path::Path;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread::Builder;
use std::time::{Duration, Instant};

/// What somebody else stands on by now is not waited for.
const SHARED_PATIENCE: Duration = Duration::ZERO;
/// At most so many threads free loops, and none for a few of them.
const THREADS: usize = 16;
const LOOPS_A_THREAD: usize = 4;
/// A loop that took longer to free was waited for: a grace period is 10 ms and more, all the rest a fraction of one.
const WAITS: Duration = Duration::from_millis(4);
/// The longest file of many file systems, where a head of the largest disk does not fit with all its metadata.
const LONGEST: Bytes = Bytes((16 << 40) - 4096);

/// An attach that is being made.
pub struct Work<'a> {
    pub store: &'a Store,
    pub place: &'a Place,
    pub record: ImageRecord,
    pub dm: &'a Dm,
    pub choice: Choice,
    pub sealed: Sealed,
    pub top: Top,
    pub numbers: Numbers,
    /// Loops that we made.
    pub loops: BTreeMap<LoopId, u32>,
    pub devices: Option<Held>,
}

impl Work<'_> {
    /// Does all the steps, or undoes those that it did.
    pub fn attach(&mut self, steps: &[Step]) -> Result<(), Failed> {
        let name = self.record.name.clone();
        steps_or_undo(self, &name, steps, Work::apply, Work::undo)
    }

    fn apply(&mut self, step: &Step) -> Result<(), StepError> {
        match step {
            Step::WriteState { read_only, mount } => {
                write_state(self.place, self.store, &self.record, &self.choice, *read_only, mount.clone())
            }
            Step::MakeHead => make_head(self.store, &mut self.record),
            Step::AttachLoop { id } => self.attach_loop(*id),
            Step::AttachHead { read_only } => self.attach_head(*read_only),
            Step::MakeDevice { device, read_only } => self.make_device(*device, *read_only),
            Step::UnlockDevices => {
                self.devices = None;
                Ok(())
            }
            Step::Mount {
                dir,
                file_system,
                read_only,
            } => mount(&device_path(&self.image_name()), dir, file_system, *read_only),
            other => take_away(other, self.place, self.dm),
        }
    }

    fn undo(&mut self, step: &Step) -> Result<(), StepError> {
        match step {
            Step::WriteState { .. } => take_away(&Step::RemoveState, self.place, self.dm),
            Step::AttachLoop { id } => self.free(*id, SHARED_PATIENCE),
            Step::AttachHead { .. } => self.free(LoopId::Head(self.place.image), PATIENCE),
            Step::MakeDevice { device, .. } if device.is_shared() => {
                self.lock_devices()?;
                match self.dm.remove(&device.uuid(self.place.store), SHARED_PATIENCE) {
                    Err(error) if error.is_busy() => Ok(()),
                    other => Ok(other?),
                }
            }
            Step::MakeDevice { device, .. } => take_away(&Step::RemoveDevice { device: *device }, self.place, self.dm),
            Step::Mount { dir, .. } => Ok(mounts::unmount(dir, PATIENCE)?),
            // An empty head changes no byte of the disk.
            _ => Ok(()),
        }
    }

    fn lock_devices(&mut self) -> Result<(), StepError> {
        if self.devices.is_none() {
            let lock = self.place.lock_devices();
            self.devices = Some(lock.map_err(StepError::io("lock the devices of", self.place.mapped_dir()))?);
        }
        Ok(())
    }

    fn image_name(&self) -> String {
        DeviceId::Image(self.place.image).name(self.place.store)
    }

    fn free(&mut self, id: LoopId, patience: Duration) -> Result<(), StepError> {
        let Some(number) = self.loops.remove(&id) else { return Ok(()) };
        match loops::detach(number, &id.name(self.place.store), patience) {
            Err(error) if error.is_busy() && patience == SHARED_PATIENCE => Ok(()),
            other => Ok(other?),
        }
    }

    fn attach_loop(&mut self, id: LoopId) -> Result<(), StepError> {
        let name = id.name(self.place.store);
        let (file, path) = match id {
            LoopId::Delta(digest) => {
                let path = self.store.object_paths(&digest).delta;
                (File::open(&path).map_err(StepError::io("open", &path))?, path)
            }
            _ => {
                let path = self.place.mapped_dir().join("metadata");
                (self.make_metadata(&path).map_err(StepError::io("write", &path))?.0, path)
            }
        };
        let wanted = loops::Attach {
            file: &path,
            name: &name,
            read_only: true,
            direct_io: false,
        };
        let made = loops::make(&file, &wanted)?;
        self.note_loop(id, made);
        self.place.set_hint(&name, made.number).map_err(|error| {
            if let Err(left) = self.free(id, SHARED_PATIENCE) {
                tracing::warn!(number = made.number, error = %left, "a loop device stays");
            }
            StepError::io("note the loops in", self.place.mapped_dir())(error)
        })
    }

    /// What a flat chain's short runs begin with: a file that lives as long as its loop.
    fn make_metadata(&self, path: &Path) -> io::Result<FileIo> {
        let file = File::options().read(true).write(true).create(true).truncate(true).open(path)?;
        std::fs::remove_file(path)?;
        let file = FileIo(file);
        match &self.sealed {
            Sealed::Flat { table, .. } => {
                let short = table.short.as_ref().expect("only a table with short runs has metadata");
                short.metadata.write(&file)?;
            }
            _ => unreachable!("a stack has no metadata"),
        }
        Ok(file)
    }

    fn note_loop(&mut self, id: LoopId, made: loops::Made) {
        self.loops.insert(id, made.number);
        self.numbers.loops.insert(id, made.device);
    }

    fn attach_head(&mut self, read_only: bool) -> Result<(), StepError> {
        let path = self.store.head_path(&self.record.name);
        let (size, bounds) = (self.record.virtual_size, self.record.bounds());
        let file = OpenOptions::new().read(true).write(!read_only).open(&path);
        let file = file.map_err(StepError::io("open", &path))?;
        let failed = |source| StepError::Head {
            path: path.clone(),
            source,
        };
        let opened = match read_only {
            true => Head::open_read_only(FileIo(file)),
            false => Head::open_within(FileIo(file), size, bounds),
        };
        let opened = opened.map_err(failed)?;
        if let Some(head) = &mut self.top.head {
            head.chunk = opened.chunk_size();
        }
        let file = &opened.io().0;
        if !read_only {
            let wanted = opened.full_len(size, bounds.limit_bytes).map_err(failed)?;
            give_length(file, wanted).map_err(StepError::io("give its length to", &path))?;
        }
        let id = LoopId::Head(self.place.image);
        let wanted = loops::Attach {
            file: &path,
            name: &id.name(self.place.store),
            read_only,
            direct_io: true,
        };
        let made = loops::make(file, &wanted)?;
        self.note_loop(id, made);
        Ok(())
    }

    fn make_device(&mut self, device: DeviceId, read_only: bool) -> Result<(), StepError> {
        let table = match device.is_shared() {
            true => self.sealed.table(device, &self.numbers)?,
            false => self.top.table(device, &self.numbers)?,
        };
        let (name, uuid) = (device.name(self.place.store), device.uuid(self.place.store));
        let is_image = matches!(device, DeviceId::Image(_));
        let new = New {
            name: &name,
            uuid: &uuid,
            read_only,
            internal: !is_image,
        };
        let number: DevNo = self.dm.create(&new, &table)?;
        self.numbers.devices.insert(device, number);
        if is_image && let Err(error) = self.dm.make_node(&name, number) {
            self.dm.remove(&uuid, PATIENCE)?;
            return Err(error.into());
        }
        Ok(())
    }
}

/// As long as the head may become, which is never less than it has in use; a reserved one that was longer had no space behind that.
fn give_length(file: &File, wanted: Bytes) -> io::Result<()> {
    match file.set_len(wanted.0) {
        Err(error) if error.kind() == io::ErrorKind::FileTooLarge => file.set_len(LONGEST.0.max(file.metadata()?.len())),
        other => other,
    }
}

/// Does one step of taking away.
pub fn take_away(step: &Step, place: &Place, dm: &Dm) -> Result<(), StepError> {
    match step {
        Step::AwaitUnused { device } => Ok(dm.await_unused(&device.uuid(place.store), PATIENCE)?),
        Step::Flush { number } => {
            loops::flush(*number)?;
            took_all(place, dm)
        }
        Step::RemoveDevice { device } => {
            dm.remove(&device.uuid(place.store), PATIENCE)?;
            if let DeviceId::Image(_) = device {
                dm.remove_node(&device.name(place.store))?;
            }
            Ok(())
        }
        Step::FreeLoop { number, name } => Ok(loops::detach(*number, name, PATIENCE)?),
        Step::FreeUnused { number } => {
            let is_shared = |name: &str| LoopId::is_shared(name, place.store);
            match loops::detach_unused(*number, is_shared, PATIENCE)? {
                // Another one of that name may have it.
                Some(name) if place.hinted(&name) == Some(*number) => place
                    .forget_hint(&name)
                    .map_err(StepError::io("forget a loop in", place.mapped_dir())),
                _ => Ok(()),
            }
        }
        Step::RemoveState => place.remove_mapped().map_err(StepError::io("remove", place.mapped_state())),
        other => super::take_away(other, place),
    }
}

/// A head that is full, or that the kernel gave up, has refused writes. Nobody may have waited for those.
fn took_all(place: &Place, dm: &Dm) -> Result<(), StepError> {
    match dm.snapshot_status(&DeviceId::Image(place.image).uuid(place.store)) {
        Ok(SnapshotStatus::Overflow) => Err(StepError::Refused { why: "full" }),
        Ok(SnapshotStatus::Invalid) => Err(StepError::Refused {
            why: "given up by the kernel",
        }),
        _ => Ok(()),
    }
}

/// Frees loops, of which none stands on another; returns those that could not be. Several at once where the kernel waits in each, as the first
/// one shows: where it does not, threads only get in each other's way.
pub fn free_together(steps: &[Step], place: &Place, dm: &Dm) -> Vec<(Step, StepError)> {
    let start = Instant::now();
    let (next, failed) = (AtomicUsize::new(0), Mutex::new(Vec::new()));
    let one = || {
        let step = steps.get(next.fetch_add(1, Ordering::Relaxed))?;
        match take_away(step, place, dm) {
            Ok(()) => stop::step("detach", step),
            Err(cause) => failed.lock().expect("nothing panics with it").push((step.clone(), cause)),
        }
        Some(())
    };
    let all = || while one().is_some() {};
    one();
    let threads = match start.elapsed() > WAITS {
        true => (steps.len() / LOOPS_A_THREAD).min(THREADS),
        false => 1,
    };
    by_many(threads, Builder::new, &all);
    failed.into_inner().expect("nothing panics with it")
}

/// Does `work` by so many threads, or as many as can be had: with fewer it only takes longer.
fn by_many(threads: usize, thread: impl Fn() -> Builder, work: &(impl Fn() + Sync)) {
    std::thread::scope(|scope| {
        for _ in 1..threads {
            if let Err(error) = thread().spawn_scoped(scope, work) {
                tracing::debug!(cause = %error, "no more threads");
                break;
            }
        }
        work();
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn work_is_done_by_one_thread_where_no_other_can_be_had() {
        for stack in [1 << 60, 1 << 20] {
            let next = AtomicUsize::new(0);
            by_many(THREADS, || Builder::new().stack_size(stack), &|| {
                while next.fetch_add(1, Ordering::Relaxed) < 1000 {}
            });
            assert!(next.into_inner() >= 1000);
        }
    }
}
