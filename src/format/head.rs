//! The writable top of a chain: finds, hands out and records file chunks, with the kernel's own durability rules.
//!
//! Refuses to know its parent and what the data means. Invariant: an exception reaches the file only after its data is durable,
//! and area k+1 is zero and durable before the last slot of area k is written. A reader stops at the first zero exception, so a
//! power cut loses what was not committed and nothing else.

use super::Exception;
use super::exceptions::{ReadError, area_bytes, read_all, read_area};
use super::header::Header;
use crate::blockio::WriteAt;
use crate::units::{Bytes, ChunkSize, DiskChunk, FileChunk};
use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, RwLock, RwLockReadGuard, RwLockWriteGuard};

#[cfg(test)]
mod power_cut;
mod repair;
mod room;
mod runs;
#[cfg(test)]
mod tests;
mod trim;

pub use repair::{RepairError, revalidate};
use room::len_for;
pub use room::{HeadBounds, LimitError, check_limit, full_len, usable_len};
use runs::Runs;
pub use trim::trim;

#[derive(Debug, thiserror::Error)]
pub enum HeadError {
    #[error("exception table of a head")]
    Read(#[from] ReadError),
    #[error("{work} a head")]
    Io {
        work: &'static str,
        #[source]
        source: io::Error,
    },
    #[error("the kernel invalidated this head (its disk was full, or an I/O error): check --repair brings it back if all of it is there")]
    Invalidated,
    #[error("exception {index}: disk chunk {disk} for the second time", disk = exception.disk.0)]
    Duplicate { index: u64, exception: Exception },
    #[error("exception {index}: file chunk {file}, a place for metadata", file = exception.file.0)]
    Metadata { index: u64, exception: Exception },
    #[error("exception {index}: file chunk {file}, past the end of the file at {} bytes", file_len.0, file = exception.file.0)]
    PastEnd { index: u64, exception: Exception, file_len: Bytes },
}

const RESERVING: &str = "reserving the space of";

/// Locks: `commit` before `state`; never the other way.
#[derive(Debug)]
pub struct Head<F> {
    io: F,
    chunk: ChunkSize,
    /// The next chunk to try as a data slot.
    next: AtomicU64,
    /// The first chunk that is past the head's limit.
    end: u64,
    reserve: bool,
    commit: Mutex<Committed>,
    state: RwLock<State>,
}

#[derive(Debug, Default)]
struct State {
    runs: Runs,
    /// Recorded, in order, and not yet in an area.
    pending: Vec<Exception>,
}

/// What is in the file.
#[derive(Debug)]
struct Committed {
    area: u64,
    /// The exceptions of `area`: fewer than it can hold.
    slots: Vec<Exception>,
    /// A sync failed. Nobody knows what reached the disk, so no later one may claim success.
    broken: bool,
}

impl<F: WriteAt> Head<F> {
    /// Makes an empty head: durable when it returns.
    pub fn create(io: F, chunk: ChunkSize) -> Result<Head<F>, HeadError> {
        let head = Head::create_within(io, chunk, Bytes::ZERO, HeadBounds::default())?;
        head.io.sync().map_err(|source| HeadError::Io { work: "making", source })?;
        Ok(head)
    }

    /// Makes the empty head of a disk of `disk` bytes, with all its space if it is to be reserved. The caller syncs the file before anybody
    /// writes to the head.
    pub fn create_within(io: F, chunk: ChunkSize, disk: Bytes, bounds: HeadBounds) -> Result<Head<F>, HeadError> {
        let make = || -> io::Result<()> {
            io.set_len(Bytes::ZERO)?;
            let mut first = vec![0; 2 * chunk.as_usize()];
            first[..16].copy_from_slice(&Header::new(chunk).to_bytes());
            io.write_at(&first, Bytes::ZERO)
        };
        make().map_err(|source| HeadError::Io { work: "making", source })?;
        let committed = Committed {
            area: 0,
            slots: Vec::new(),
            broken: false,
        };
        let mut head = Head {
            io,
            chunk,
            next: AtomicU64::new(2),
            end: u64::MAX,
            reserve: false,
            commit: Mutex::new(committed),
            state: RwLock::default(),
        };
        head.bind(bounds);
        head.take_space(disk, bounds)?;
        Ok(head)
    }

    /// Opens a head to write: reads it, and makes all that no exception names read as zeros, so that neither a chunk handed out
    /// later nor an area opened later has anything of a former life in it.
    ///
    /// Errors: a head that the kernel invalidated, and one whose exceptions contradict each other or the file.
    pub fn open(io: F) -> Result<Head<F>, HeadError> {
        Head::open_within(io, Bytes::ZERO, HeadBounds::default())
    }

    /// The same for a head of a disk of `disk` bytes that may take only so much space, or has to have it.
    ///
    /// The file is cut behind the last chunk that is used; one that is reserved gets all of its length instead.
    pub fn open_within(io: F, disk: Bytes, bounds: HeadBounds) -> Result<Head<F>, HeadError> {
        let mut head = Head::open_read_only(io)?;
        head.bind(bounds);
        head.tidy()?;
        if head.take_space(disk, bounds)? {
            head.io.sync().map_err(|source| HeadError::Io { work: RESERVING, source })?;
        }
        Ok(head)
    }

    fn bind(&mut self, bounds: HeadBounds) {
        self.reserve = bounds.reserve;
        self.end = match bounds.limit_bytes {
            Some(limit) => self.chunk.count(usable_len(limit, self.chunk)),
            None => u64::MAX,
        };
    }

    /// Takes the space of a reserved head; says whether it is one.
    fn take_space(&self, disk: Bytes, bounds: HeadBounds) -> Result<bool, HeadError> {
        if bounds.reserve {
            let len = self.full_len(disk, bounds.limit_bytes)?;
            self.io.reserve(len).map_err(|source| HeadError::Io { work: RESERVING, source })?;
        }
        Ok(bounds.reserve)
    }

    /// Gives back what a reserved head has behind the space that it was promised: it had larger bounds, and the record has smaller ones by now.
    pub fn give_back(&self, disk: Bytes, bounds: HeadBounds) -> Result<(), HeadError> {
        if !bounds.reserve {
            return Ok(());
        }
        let len = self.full_len(disk, bounds.limit_bytes)?;
        let cut = || match self.io.size()? > len {
            true => self.io.set_len(len).and_then(|()| self.io.sync()),
            false => Ok(()),
        };
        cut().map_err(|source| HeadError::Io { work: "cutting", source })
    }

    /// The length that the file of this head has when it is given to the kernel: it is full at its limit, or never.
    ///
    /// File chunks that nobody names, which an unclean stop leaves, and exceptions behind the end of the disk are room that the disk cannot have.
    pub fn full_len(&self, disk: Bytes, limit: Option<Bytes>) -> Result<Bytes, HeadError> {
        let next = self.next.load(Ordering::SeqCst);
        let areas = (next - 1).div_ceil(self.chunk.exceptions_per_area() + 1);
        let disk_chunks = self.chunk.count(disk);
        let dead = (next - 1 - areas).saturating_sub(self.state().runs.count_before(DiskChunk(disk_chunks)));
        let full = disk_chunks.checked_add(dead).and_then(|data| len_for(data, self.chunk));
        let full = full.ok_or_else(|| HeadError::Io {
            work: "giving its full length to",
            source: io::ErrorKind::FileTooLarge.into(),
        })?;
        let len = limit.map_or(full, |limit| full.min(usable_len(limit, self.chunk)));
        Ok(len.max(self.used_len()))
    }

    /// Up to here the file is in use.
    pub fn used_len(&self) -> Bytes {
        let past_last_area = self
            .chunk
            .area_chunk(self.committed().area)
            .expect("the area was read, or follows one that was")
            .0
            + 1;
        self.chunk
            .offset(FileChunk(self.next.load(Ordering::SeqCst).max(past_last_area)))
            .expect("both were found within the file, or one chunk behind it")
    }

    /// Opens a head to read: the file is not changed.
    pub fn open_read_only(io: F) -> Result<Head<F>, HeadError> {
        let table = read_all(&io)?;
        if !table.header.valid {
            return Err(HeadError::Invalidated);
        }
        let chunk = table.header.chunk_size;
        let mut runs = Runs::default();
        let mut next = 2;
        for (index, exception) in table.exceptions.iter().enumerate() {
            let (index, exception) = (index as u64, *exception);
            let end = exception.file.0.checked_add(1).and_then(|end| chunk.offset(FileChunk(end)));
            if end.is_none_or(|end| end > table.file_len) {
                return Err(HeadError::PastEnd {
                    index,
                    exception,
                    file_len: table.file_len,
                });
            }
            if chunk.is_metadata(exception.file) {
                return Err(HeadError::Metadata { index, exception });
            }
            if !runs.insert(exception) {
                return Err(HeadError::Duplicate { index, exception });
            }
            next = next.max(exception.file.0 + 1);
        }
        let area = table.last_area();
        let slots = table.exceptions[(area * chunk.exceptions_per_area()) as usize..].to_vec();
        let commit = Mutex::new(Committed {
            area,
            slots,
            broken: false,
        });
        let state = RwLock::new(State { runs, pending: Vec::new() });
        Ok(Head {
            io,
            chunk,
            next: AtomicU64::new(next),
            end: u64::MAX,
            reserve: false,
            commit,
            state,
        })
    }

    /// Zeros what a power cut may have left: the slots behind the last exception, the areas behind the last area, and all data
    /// chunks that can still be handed out. Relied on by `commit`, which writes an area as a whole: torn, such a write would else
    /// join old exceptions to new ones.
    fn tidy(&self) -> Result<(), HeadError> {
        let failed = |source| HeadError::Io { work: "tidying", source };
        let end = self.used_len();
        let committed = self.committed();
        let file_len = self.io.size().map_err(failed)?;
        let mut changed = false;
        if self.reserve {
            // Whatever it says it is used for, its space stays its own.
            self.io.zero(end, Bytes(file_len.0.saturating_sub(end.0))).map_err(failed)?;
            self.io.reserve(end).map_err(failed)?;
            changed = true;
        } else if file_len != end {
            // Punched before it is cut: a file on a device of fixed size would keep its length and its bytes.
            if file_len > end {
                self.io.punch(end, Bytes(file_len.0 - end.0)).map_err(failed)?;
            }
            self.io.set_len(end).map_err(failed)?;
            changed = true;
        }
        let mut want = area_bytes(self.chunk, &committed.slots);
        for area in committed.area.. {
            let Some(found) = read_area(&self.io, self.chunk, area, end)? else {
                break;
            };
            if found != want {
                let slot = self.chunk.area_chunk(area).expect("it was just read");
                self.io.write_at(&want, self.offset(slot)).map_err(failed)?;
                changed = true;
            }
            want.fill(0);
        }
        if changed {
            self.io.sync().map_err(failed)?;
        }
        Ok(())
    }

    pub fn chunk_size(&self) -> ChunkSize {
        self.chunk
    }

    pub fn io(&self) -> &F {
        &self.io
    }

    /// Where the head has a disk chunk: committed, or only recorded.
    pub fn get(&self, disk: DiskChunk) -> Option<FileChunk> {
        self.state().runs.get(disk)
    }

    /// A data chunk that nobody else gets; `None` when the head is full. It reads as zeros, if the file is long enough to be read there.
    pub fn allocate(&self) -> Option<FileChunk> {
        loop {
            let within = |next| (next < self.end).then_some(next + 1);
            let slot = FileChunk(self.next.fetch_update(Ordering::SeqCst, Ordering::SeqCst, within).ok()?);
            if !self.chunk.is_metadata(slot) {
                return Some(slot);
            }
        }
    }

    /// Makes a range of the file's data read as zeros; gives its space back unless it is reserved.
    pub fn erase(&self, at: Bytes, len: Bytes) -> io::Result<()> {
        if self.reserve {
            self.io.zero(at, len)
        } else {
            self.io.punch(at, len)
        }
    }

    /// Says that `disk` is now in `file`, to the reads that follow at once, and durably with the next commit.
    ///
    /// Shape: `file` comes from `allocate`, and all of its bytes have been written. Returns `false`, and changes nothing, when the
    /// disk chunk has a file chunk already: of two exceptions the kernel believes the first, so there is never a second.
    pub fn record(&self, disk: DiskChunk, file: FileChunk) -> bool {
        let exception = Exception { disk, file };
        let mut state = self.state_mut();
        let new = state.runs.insert(exception);
        if new {
            state.pending.push(exception);
        }
        new
    }

    /// Makes durable what was written and recorded before the call: a barrier.
    ///
    /// Errors: after a failed write it can be called again. After a failed sync it fails for good, as the kernel may have dropped
    /// what it could not write.
    pub fn commit(&self) -> io::Result<()> {
        let mut committed = self.committed();
        if committed.broken {
            return Err(io::Error::other(
                "an earlier sync of this head failed: what is durable is not known",
            ));
        }
        let batch = std::mem::take(&mut self.state_mut().pending);
        let done = self.commit_batch(&mut committed, &batch);
        if done.is_err() && !batch.is_empty() {
            let mut state = self.state_mut();
            let later = std::mem::replace(&mut state.pending, batch);
            state.pending.extend(later);
        }
        done
    }

    fn commit_batch(&self, committed: &mut Committed, batch: &[Exception]) -> io::Result<()> {
        let per_area = self.chunk.exceptions_per_area() as usize;
        let mut slots = committed.slots.clone();
        slots.extend_from_slice(batch);
        let full = (slots.len() / per_area) as u64;
        // Zeroed here and durable with the data: for a full area the one behind it is never in doubt.
        let zeros = vec![0; if full > 0 { self.chunk.as_usize() } else { 0 }];
        for area in 1..=full {
            self.io.write_at(&zeros, self.area_offset(committed.area + area)?)?;
        }
        self.sync(committed)?;
        if batch.is_empty() {
            return Ok(());
        }
        for (area, slots) in slots.chunks(per_area).enumerate() {
            self.io
                .write_at(&area_bytes(self.chunk, slots), self.area_offset(committed.area + area as u64)?)?;
        }
        self.sync(committed)?;
        committed.area += full;
        committed.slots = slots.split_off(full as usize * per_area);
        Ok(())
    }

    fn sync(&self, committed: &mut Committed) -> io::Result<()> {
        let done = self.io.sync();
        committed.broken = done.is_err();
        done
    }

    /// All exceptions, committed or recorded, by disk chunk.
    pub fn exceptions(&self) -> Vec<Exception> {
        self.state().runs.iter().collect()
    }

    fn area_offset(&self, area: u64) -> io::Result<Bytes> {
        let at = self.chunk.area_chunk(area).and_then(|slot| self.chunk.offset(slot));
        at.ok_or_else(|| io::ErrorKind::FileTooLarge.into())
    }

    fn offset(&self, chunk: FileChunk) -> Bytes {
        self.chunk.offset(chunk).expect("the chunk was found within the file")
    }

    fn committed(&self) -> MutexGuard<'_, Committed> {
        self.commit.lock().expect("no thread panics while it holds this lock")
    }

    fn state(&self) -> RwLockReadGuard<'_, State> {
        self.state.read().expect("no thread panics while it holds this lock")
    }

    fn state_mut(&self) -> RwLockWriteGuard<'_, State> {
        self.state.write().expect("no thread panics while it holds this lock")
    }
}
