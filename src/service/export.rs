//! `export`: an image as an archive or as a raw disk.
//!
//! Refuses to export what is being written to. Invariant: the target appears whole, by a rename, or not at all.

use super::engine::Engine;
use super::make::ms;
use super::mount::failed;
use super::own_mount::OwnMount;
use super::{ErrorKind, Export, ExportReply, Progress, ServiceError};
use crate::attach::{self, AttachOptions};
use crate::chain::{Change, Source, union};
use crate::files;
use crate::ids::ImageName;
use crate::store::ImageRecord;
use crate::units::{Bytes, DiskChunk};
use std::fs::{self, File};
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};
use std::time::Instant;

impl Engine {
    pub(super) fn export(&self, ask: Export, progress: &dyn Progress) -> Result<ExportReply, ServiceError> {
        let start = Instant::now();
        let record = self.store.image(&ask.name)?;
        let as_tar = match ask.target.extension().and_then(|ending| ending.to_str()) {
            Some("tar") => true,
            Some("raw" | "img") => false,
            _ => {
                return Err(ServiceError::new(
                    ErrorKind::Usage,
                    format!("{}: want a name that ends in .tar or .raw", ask.target.display()),
                ));
            }
        };
        let draft = Target::new(&ask.target)?;
        let entries = match as_tar {
            true => Some(self.export_tar(&ask.name, &draft.file, progress)?),
            false => {
                self.export_raw(&record, &draft.file, progress)?;
                None
            }
        };
        progress.update("sync", 0, None);
        let written_bytes = draft.finish(&ask.target)?;
        Ok(ExportReply {
            name: ask.name,
            target: ask.target,
            written_bytes,
            entries,
            took_ms: ms(start.elapsed()),
        })
    }

    fn export_raw(&self, record: &ImageRecord, target: &File, progress: &dyn Progress) -> Result<(), ServiceError> {
        let _lock = self.store.lock_image(&record.name)?;
        let record = self.store.image(&record.name)?;
        let files = self.disk_files(&record, true);
        let disk = files.open()?;
        let ranges = self.data_ranges(&record, disk.size())?;
        let total = ranges.iter().map(|range| range.end.0 - range.start.0).sum();
        let mut tell = |done| progress.update("write", done, Some(total));
        files::raw_out::export(&*disk, ranges.into_iter(), target, &mut tell)
            .map_err(|error| ServiceError::new(ErrorKind::Failed, "writing the raw disk").because(Some(&error)))
    }

    /// What may be other than zeros.
    fn data_ranges(&self, record: &ImageRecord, size: Bytes) -> Result<Vec<Change>, ServiceError> {
        let map = self.disk_files(record, true).chain()?.into_map();
        let data = |segment: &crate::chain::Segment| !matches!(segment.source, Source::Zero);
        let sealed: Vec<Change> = map
            .segments(Bytes::ZERO..size)
            .filter(data)
            .map(|segment| segment.at..segment.end())
            .collect();
        let mut head = Vec::new();
        if record.head.is_some() {
            let file = self.open_head(&record.name)?;
            let chunk = file.chunk_size();
            let offset = |disk| chunk.disk_offset(disk).unwrap_or(size).min(size);
            head.extend(file.exceptions().iter().map(|e| offset(e.disk)..offset(DiskChunk(e.disk.0 + 1))));
        }
        Ok(union(&sealed, &head))
    }

    /// Through a read-only mount of its own.
    fn export_tar(&self, name: &ImageName, target: &File, progress: &dyn Progress) -> Result<u64, ServiceError> {
        let place = OwnMount::new(&self.store, "export", name)?;
        let dir = &place.dir;
        let options = AttachOptions {
            read_only: true,
            temporary: true,
            ..AttachOptions::default()
        };
        let mine = attach::mount(&self.store, name, dir, &options)?;
        let mut out = BufWriter::with_capacity(1 << 20, target);
        let mut tell = |bytes, _| progress.update("write", bytes, None);
        let written = files::open_root(dir)
            .map_err(|error| failed("open", dir, &error.into()))
            .and_then(|root| Ok(files::tar_out::export(&root, &mut out, &mut tell)?));
        let away = mine.umount(&self.store, name);
        let stats = written?;
        away?;
        out.flush()
            .map_err(|error| ServiceError::new(ErrorKind::Failed, "writing the archive").because(Some(&error)))?;
        Ok(stats.entries)
    }
}

/// The file beside the target that becomes it.
struct Target {
    draft: PathBuf,
    file: File,
    is_done: bool,
}

impl Target {
    fn new(target: &Path) -> Result<Target, ServiceError> {
        let mut draft = target.as_os_str().to_owned();
        draft.push(format!(".{}.part", std::process::id()));
        let draft = PathBuf::from(draft);
        let opened = File::options().read(true).write(true).create_new(true).open(&draft);
        Ok(Target {
            file: opened.map_err(|error| failed("make", &draft, &error))?,
            draft,
            is_done: false,
        })
    }

    /// Durable, then in its place. Tells the size on disk.
    fn finish(mut self, target: &Path) -> Result<Bytes, ServiceError> {
        use std::os::unix::fs::MetadataExt;
        self.file.sync_all().map_err(|error| failed("sync", &self.draft, &error))?;
        let meta = self.file.metadata().map_err(|error| failed("look at", &self.draft, &error))?;
        fs::rename(&self.draft, target).map_err(|error| failed("make", target, &error))?;
        self.is_done = true;
        Ok(Bytes(meta.blocks() * 512))
    }
}

impl Drop for Target {
    fn drop(&mut self) {
        if !self.is_done
            && let Err(error) = fs::remove_file(&self.draft)
        {
            tracing::warn!(file = %self.draft.display(), cause = %error, "an unfinished export stays");
        }
    }
}
