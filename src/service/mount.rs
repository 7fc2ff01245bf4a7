//! Images as devices and mounted file systems: `attach`, `detach`, `mount`, `umount`.
//!
//! Refuses to know how a device is made. Invariant: what is attached is what `attach` says, never what was noted here.

use super::engine::Engine;
use super::make::{bounds, ms};
use super::{Attach, AttachReply, Detach, DetachReply, ErrorKind, Mode, Mount, MountReply, ServiceError, Umount, UmountReply};
use crate::attach::{self, AttachError, AttachOptions};
use crate::format::head::HeadBounds;
use crate::ids::{ImageId, ImageName};
use crate::store::ImageRecord;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Instant;

impl Engine {
    pub(super) fn attach(&self, ask: Attach) -> Result<AttachReply, ServiceError> {
        let start = Instant::now();
        let options = options(ask.read_only, ask.mode, bounds(ask.limit_bytes, ask.reserve));
        let before = self.store.image(&ask.name)?;
        self.must_have_room_for(&before, &options)?;
        let attached = attach::attach(&self.store, &ask.name, &options).map_err(|error| self.told(&ask.name, error))?;
        self.note_head(attached.new_head)?;
        Ok(AttachReply {
            name: ask.name,
            device: attached.device,
            read_only: attached.read_only,
            mode: attached.mode,
            took_ms: ms(start.elapsed()),
        })
    }

    pub(super) fn detach(&self, ask: Detach) -> Result<DetachReply, ServiceError> {
        let gone = attach::detach(&self.store, &ask.name).map_err(|error| self.not_there(&ask.name, error))?;
        Ok(DetachReply {
            name: ask.name,
            device: gone.device.unwrap_or_default(),
        })
    }

    pub(super) fn mount(&self, ask: Mount) -> Result<MountReply, ServiceError> {
        let start = Instant::now();
        let own = self.default_dir(&ask.name);
        let dir = match &ask.dir {
            Some(dir) => dir.clone(),
            None => own.clone(),
        };
        let before = self.store.image(&ask.name)?;
        if dir == own {
            fs::create_dir_all(&dir).map_err(|error| failed("make", &dir, &error))?;
        } else if let Err(error) = must_be_empty(&dir)
            && !self.is_mounted(&ask.name)?
        {
            return Err(error);
        }
        let options = options(ask.read_only, ask.mode, bounds(ask.limit_bytes, ask.reserve));
        self.must_have_room_for(&before, &options)?;
        let mounted = attach::mount(&self.store, &ask.name, &dir, &options).inspect_err(|_| remove_own(&own));
        let attached = mounted.map_err(|error| self.told(&ask.name, error))?;
        self.note_head(attached.new_head)?;
        Ok(MountReply {
            name: ask.name,
            device: attached.device,
            dir,
            read_only: attached.read_only,
            mode: attached.mode,
            took_ms: ms(start.elapsed()),
        })
    }

    pub(super) fn umount(&self, ask: Umount) -> Result<UmountReply, ServiceError> {
        let away = attach::umount(&self.store, &ask.name);
        if away.as_ref().map_or_else(AttachError::is_gone, |_| true) {
            remove_own(&self.default_dir(&ask.name));
        }
        let gone = away.map_err(|error| self.not_there(&ask.name, error))?;
        Ok(UmountReply {
            name: ask.name,
            dir: gone.dir.unwrap_or_default(),
        })
    }

    /// An image that is not attached may not be there at all.
    fn not_there(&self, name: &ImageName, error: AttachError) -> ServiceError {
        match error {
            AttachError::NotAttached { .. } => self.store.image(name).map_or_else(ServiceError::from, |_| error.into()),
            _ => error.into(),
        }
    }

    /// Only a head that is made now, and does not take its space at once, needs more than there is.
    fn must_have_room_for(&self, record: &ImageRecord, options: &AttachOptions) -> Result<(), ServiceError> {
        let reserved = options.bounds.over(record.next_head).reserve;
        match options.read_only || record.head.is_some() || reserved {
            true => Ok(()),
            false => self.must_have_room(),
        }
    }

    fn is_mounted(&self, name: &ImageName) -> Result<bool, ServiceError> {
        let state = attach::state(&self.store, ImageId::of(name))?;
        Ok(state.is_some_and(|state| !state.mounts.is_empty()))
    }

    /// An error of attaching. What a FUSE server says before it dies is only words, so the chain is asked whether it is damaged.
    fn told(&self, name: &ImageName, error: AttachError) -> ServiceError {
        let error = ServiceError::from(error);
        let Ok(record) = self.store.image(name) else { return error };
        match self.disk_files(&record, true).open() {
            Err(damage) if error.kind == ErrorKind::Failed => ServiceError::from(damage).of(format!("image \"{name}\"")),
            _ => error,
        }
    }

    /// Where an image is mounted when nobody says where.
    fn default_dir(&self, name: &ImageName) -> PathBuf {
        self.store.run_dir().join("mnt").join(ImageId::of(name).to_string())
    }

    /// A first attach makes a head, which is in the image's record: the catalogue learns of that, and is not troubled otherwise.
    fn note_head(&self, new: Option<ImageRecord>) -> Result<(), ServiceError> {
        match new {
            Some(record) => self.index(|catalog| catalog.put_image(&record)),
            None => Ok(()),
        }
    }
}

fn options(read_only: bool, mode: Option<Mode>, bounds: HeadBounds) -> AttachOptions {
    AttachOptions {
        read_only,
        mode,
        bounds,
        ..AttachOptions::default()
    }
}

/// What is in a directory cannot be reached while something is mounted there.
fn must_be_empty(dir: &Path) -> Result<(), ServiceError> {
    let kind = |error: &io::Error| match error.kind() {
        io::ErrorKind::NotFound => ErrorKind::NotFound,
        io::ErrorKind::NotADirectory => ErrorKind::Usage,
        _ => ErrorKind::Failed,
    };
    match fs::read_dir(dir).map(|mut entries| entries.next().is_none()) {
        Ok(true) => Ok(()),
        Ok(false) => Err(ServiceError::new(
            ErrorKind::Usage,
            format!("{}: the directory is not empty", dir.display()),
        )),
        Err(error) => Err(ServiceError::new(kind(&error), format!("mount at {}", dir.display())).because(Some(&error))),
    }
}

/// Only when it is empty and nothing is mounted there.
fn remove_own(dir: &Path) {
    if let Err(error) = fs::remove_dir(dir)
        && error.kind() != io::ErrorKind::NotFound
    {
        tracing::debug!(dir = %dir.display(), cause = %error, "a mount directory stays");
    }
}

pub(super) fn failed(doing: &str, path: &Path, error: &io::Error) -> ServiceError {
    ServiceError::new(ErrorKind::Failed, format!("{doing} {}", path.display())).because(Some(error))
}
