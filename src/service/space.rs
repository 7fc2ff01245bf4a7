//! Room on the store's disk for what heads do not have yet: who runs out of it while a kernel writes loses the mounted file system.
//!
//! Refuses to watch heads: it is one margin of free space for all of them. Invariant: a daemon says once that the margin is crossed, and once
//! that all is well again.

use super::engine::Engine;
use super::{ErrorKind, ServiceError};
use crate::units::Bytes;
use std::io;
use std::path::Path;
use std::sync::{Arc, Weak};
use std::time::Duration;

/// The margin unless said: this, or a fiftieth of a smaller disk.
const DEFAULT_MARGIN: Bytes = Bytes(1 << 30);
const DEFAULT_PART: u64 = 50;
const LOOK_EVERY: Duration = Duration::from_secs(5);

/// What a file system has.
#[derive(Debug, Clone, Copy)]
struct Space {
    free: Bytes,
    size: Bytes,
}

impl Space {
    fn of(path: &Path) -> io::Result<Space> {
        let found = rustix::fs::statvfs(path)?;
        let bytes = |blocks: u64| Bytes(blocks.saturating_mul(found.f_frsize));
        Ok(Space {
            free: bytes(found.f_bavail),
            size: bytes(found.f_blocks),
        })
    }

    fn margin(&self, wanted: Option<Bytes>) -> Bytes {
        wanted.unwrap_or(DEFAULT_MARGIN.min(Bytes(self.size.0 / DEFAULT_PART)))
    }
}

/// Remembers on which side of the margin a disk was.
#[derive(Debug, Default)]
struct Watch {
    below: bool,
}

impl Watch {
    /// `Some` when the margin was crossed: whether there is less free now.
    fn look(&mut self, free: Bytes, margin: Bytes) -> Option<bool> {
        let below = free < margin;
        let crossed = below != self.below;
        self.below = below;
        crossed.then_some(below)
    }
}

impl Engine {
    /// Refuses a new head that would have its space only as long as nobody else takes it, where little is left.
    pub(super) fn must_have_room(&self) -> Result<(), ServiceError> {
        let root = &self.settings.root;
        let space = Space::of(root).map_err(|error| super::mount::failed("look at the free space of", root, &error))?;
        let margin = space.margin(self.settings.free_margin);
        if space.free >= margin {
            return Ok(());
        }
        let (free, at) = (space.free, root.display());
        let message = format!(
            "no space for another head: {free} free at {at}, and the margin is {margin} (free_margin); --reserve asks for no more than it takes"
        );
        Err(ServiceError::new(ErrorKind::Failed, message))
    }
}

/// Warns, as long as there is an engine, when the free space of its store's disk falls below the margin.
pub(super) fn watch(engine: &Arc<Engine>) {
    let engine: Weak<Engine> = Arc::downgrade(engine);
    std::thread::spawn(move || {
        let mut watch = Watch::default();
        while let Some(engine) = engine.upgrade() {
            let root = &engine.settings.root;
            match Space::of(root) {
                Ok(space) => {
                    let margin = space.margin(engine.settings.free_margin);
                    match watch.look(space.free, margin) {
                        Some(true) => {
                            tracing::warn!(root = %root.display(), free = %space.free, %margin, "little space is left: no new heads, and mounted images are in danger")
                        }
                        Some(false) => tracing::info!(root = %root.display(), free = %space.free, %margin, "enough space again"),
                        None => {}
                    }
                }
                Err(error) => tracing::debug!(root = %root.display(), cause = %error, "free space is not known"),
            }
            drop(engine);
            std::thread::sleep(LOOK_EVERY);
        }
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_crossing_is_said_once_in_each_direction() {
        let mut watch = Watch::default();
        let seen: Vec<Option<bool>> = [9, 10, 5, 4, 9, 10, 11, 9].map(|free| watch.look(Bytes(free), Bytes(10))).into();
        let want = [Some(true), Some(false), Some(true), None, None, Some(false), None, Some(true)];
        assert_eq!(seen, want);
    }

    #[test]
    fn the_margin_is_a_gibibyte_or_a_part_of_a_small_disk_unless_said() {
        let space = |size| Space {
            free: Bytes::ZERO,
            size: Bytes(size),
        };
        assert_eq!(space(1 << 40).margin(None), Bytes(1 << 30));
        assert_eq!(space(50 << 20).margin(None), Bytes(1 << 20));
        assert_eq!(space(1 << 40).margin(Some(Bytes::ZERO)), Bytes::ZERO);
    }
}
