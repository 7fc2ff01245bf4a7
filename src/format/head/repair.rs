//! Brings back a head that the kernel has given up, when nothing of it is lost.
//!
//! Refuses to guess: a head with anything else wrong stays as it is. Invariant: the header says "valid" again only after every exception was
//! found sensible and every byte of data was read.
//!
//! Why that is enough: the kernel writes an exception after its data is durable, and gives up by writing one word of the header. What it could
//! not write any more is in no exception. An area that it wrote in part ends at its first zero; what is stale behind that is zeroed when the
//! head is opened next, as after a power cut.

use super::super::check::{self, Finding, FindingKind, Kind};
use super::super::exceptions::{ReadError, Table, read_all};
use crate::blockio::WriteAt;
use crate::units::{Bytes, MAX_DISK};
use std::io;

/// Where the kernel says whether it has given up.
const VALID_AT: Bytes = Bytes(4);

/// Why a head stays invalid.
#[derive(Debug, thiserror::Error)]
pub enum RepairError {
    #[error(transparent)]
    Table(#[from] ReadError),
    #[error("{finding}{}", if *more > 0 { format!(", and {more} more") } else { String::new() })]
    Damaged { finding: Finding, more: usize },
    #[error("exception {index}: disk chunk {disk}, behind the end of any disk")]
    Disk { index: u64, disk: u64 },
    #[error("data of disk chunk {disk}, at byte {}", at.0)]
    Data { disk: u64, at: Bytes, source: io::Error },
    #[error("writing the header")]
    Write(#[source] io::Error),
}

/// Makes a head valid that the kernel has invalidated: durable when it returns. One that is valid is not changed.
///
/// `progress` hears of the bytes read. Errors: [`RepairError`]; the file is then as it was.
pub fn revalidate<F: WriteAt>(io: &F, progress: &mut dyn FnMut(Bytes)) -> Result<(), RepairError> {
    let table = read_all(io)?;
    if table.header.valid {
        return Ok(());
    }
    let mut wrong = Vec::new();
    check::check(io, Kind::Head, &mut |finding| wrong.push(finding));
    // An area that a full one lacks is made when the head is opened.
    wrong.retain(|finding| !matches!(finding.kind, FindingKind::Invalidated | FindingKind::MissingArea));
    if !wrong.is_empty() {
        let finding = wrong.swap_remove(0);
        return Err(RepairError::Damaged {
            finding,
            more: wrong.len(),
        });
    }
    read_data(io, &table, progress)?;
    let revalidated = io.write_at(&1u32.to_le_bytes(), VALID_AT).and_then(|()| io.sync());
    revalidated.map_err(RepairError::Write)
}

fn read_data<F: WriteAt>(io: &F, table: &Table, progress: &mut dyn FnMut(Bytes)) -> Result<(), RepairError> {
    let chunk = table.header.chunk_size;
    let mut buffer = vec![0; chunk.as_usize()];
    for (index, exception) in (0..).zip(&table.exceptions) {
        let disk = exception.disk.0;
        if chunk.disk_offset(exception.disk).is_none_or(|at| at >= MAX_DISK) {
            return Err(RepairError::Disk { index, disk });
        }
        let at = chunk.offset(exception.file).expect("it was found within the file");
        io.read_at(&mut buffer, at)
            .map_err(|source| RepairError::Data { disk, at, source })?;
        progress(chunk.bytes());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::super::Head;
    use super::*;
    use crate::blockio::{MemoryIo, ReadAt};
    use crate::units::{ChunkSize, DiskChunk};

    /// A head of so many chunks that the kernel has given up.
    fn invalid(chunks: u64) -> Vec<u8> {
        let head = Head::create(MemoryIo::default(), ChunkSize::MIN).unwrap();
        for disk in 0..chunks {
            let file = head.allocate().unwrap();
            head.io().write_at(&[7; 4096], ChunkSize::MIN.offset(file).unwrap()).unwrap();
            assert!(head.record(DiskChunk(disk * 3), file));
        }
        head.commit().unwrap();
        head.io().write_at(&[0; 4], VALID_AT).unwrap();
        head.io().bytes()
    }

    fn bytes_after(bytes: Vec<u8>) -> (Result<(), RepairError>, MemoryIo) {
        let io = MemoryIo::new(bytes);
        (revalidate(&io, &mut |_| {}), io)
    }

    #[test]
    fn a_whole_head_is_valid_again_and_only_one_word_of_it_has_changed() {
        for chunks in [0, 1, 255, 256, 300] {
            let before = invalid(chunks);
            assert!(Head::open(MemoryIo::new(before.clone())).is_err());
            let (done, io) = bytes_after(before.clone());
            done.unwrap();
            let mut want = before;
            want[4] = 1;
            assert_eq!(io.bytes(), want);
            assert_eq!(Head::open(io).unwrap().exceptions().len() as u64, chunks);
        }
    }

    #[test]
    fn an_area_that_is_missing_behind_a_full_one_is_no_reason_to_refuse() {
        let mut bytes = invalid(256);
        bytes.truncate(258 * 4096);
        let (done, io) = bytes_after(bytes);
        done.unwrap();
        let head = Head::open(io).unwrap();
        assert_eq!((head.exceptions().len(), head.io().size().unwrap()), (256, Bytes(259 * 4096)));
    }

    #[test]
    fn a_head_that_lost_something_stays_as_it_is() {
        let at_slot = |slot: usize, bytes: &mut Vec<u8>, value: u64| bytes[4096 + slot * 8..][..8].copy_from_slice(&value.to_le_bytes());
        type Spoil = Box<dyn Fn(&mut Vec<u8>)>;
        let cases: [(&str, Spoil); 5] = [
            ("past the end", Box::new(|bytes| bytes.truncate(6 * 4096 + 100))),
            ("second time", Box::new(move |bytes| at_slot(2, bytes, 0))),
            ("second time", Box::new(move |bytes| at_slot(3, bytes, 2))),
            ("metadata", Box::new(move |bytes| at_slot(3, bytes, 1))),
            ("behind the end of any disk", Box::new(move |bytes| at_slot(2, bytes, 1 << 40))),
        ];
        for (want, spoil) in cases {
            let mut bytes = invalid(9);
            spoil(&mut bytes);
            let (done, io) = bytes_after(bytes.clone());
            let why = done.unwrap_err().to_string();
            assert!(why.contains(want), "{want}: {why}");
            assert_eq!(io.bytes(), bytes);
        }
        let (done, _) = bytes_after(vec![9; 9000]);
        assert!(matches!(done, Err(RepairError::Table(_))));
    }

    /// A disk that has lost a sector.
    struct Unreadable(MemoryIo);

    impl ReadAt for Unreadable {
        fn read_at(&self, buf: &mut [u8], at: Bytes) -> io::Result<()> {
            match at == Bytes(5 * 4096) {
                true => Err(io::Error::other("a lost sector")),
                false => self.0.read_at(buf, at),
            }
        }
        fn size(&self) -> io::Result<Bytes> {
            self.0.size()
        }
    }

    impl WriteAt for Unreadable {
        fn write_at(&self, _: &[u8], _: Bytes) -> io::Result<()> {
            panic!("nothing is written to it")
        }
        fn sync(&self) -> io::Result<()> {
            Ok(())
        }
        fn set_len(&self, _: Bytes) -> io::Result<()> {
            panic!("it is not cut")
        }
        fn punch(&self, _: Bytes, _: Bytes) -> io::Result<()> {
            panic!("it is not punched")
        }
    }

    #[test]
    fn data_that_cannot_be_read_is_a_reason_to_refuse() {
        let done = revalidate(&Unreadable(MemoryIo::new(invalid(9))), &mut |_| {});
        assert!(matches!(done, Err(RepairError::Data { disk: 9, .. })), "{done:?}");
    }
}
