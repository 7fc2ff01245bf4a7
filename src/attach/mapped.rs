//! The kernel modes: an image through device-mapper, and away again.
//!
//! Refuses to know FUSE. Invariant: from before the first change in the kernel until after the last a marker says that a verb is at work, so
//! that the next one finds what a dead one left without a look at anything else.

use super::below::{self, Node};
use super::error::{AttachError, whole};
use super::mode::{Choice, Mode};
use super::names::{DeviceId, LoopId};
use super::place::{Marker, Place};
use super::plan::{Step, mapped as plan};
use super::recipe::{Base, Level, MAX_LEVELS, Numbers, Sealed, Top, TopHead};
use super::run::StepError;
use super::run::mapped::{self as run, Work};
use super::seen::{Around, MappedSeen, device_path};
use super::table::{self, From};
use super::{AttachOptions, Attached, DiskFiles, fresh_record, lock_image, stop};
use crate::chain::{ChainMap, Delta};
use crate::ids::{ChainId, Digest, ImageName};
use crate::kernel::dm::Dm;
use crate::kernel::loops::{self, LoopDevice};
use crate::store::{ImageRecord, Store};
use crate::units::{Bytes, ChunkSize};
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

/// Makes the image's device; nothing of the image is attached.
pub fn attach(
    store: &Store,
    name: &ImageName,
    place: &Place,
    dm: &Dm,
    options: &AttachOptions,
    choice: Choice,
    mount: Option<&Path>,
) -> Result<Attached, AttachError> {
    let _lock = lock_image(store, name)?;
    let record = fresh_record(store, name, options, mount)?;
    if choice.mode == Mode::Stack && record.chain.len() > MAX_LEVELS {
        return Err(AttachError::TooDeep {
            name: name.clone(),
            deltas: record.chain.len(),
        });
    }
    let marker = place.mark(options.temporary).map_err(at_work(place))?;
    stop::point("attach.mark");
    let (mode, had_head) = (choice.mode, record.head.is_some());
    match make(store, place, dm, options.read_only, choice, record, mount) {
        Ok(record) => {
            let owner = match options.temporary {
                true => marker.into_owner(),
                false => {
                    marker.done().map_err(at_work(place))?;
                    None
                }
            };
            let device = device_path(&DeviceId::Image(place.image).name(place.store));
            tracing::info!(image = %name, device = %device.display(), %mode, "attached");
            Ok(Attached {
                device,
                read_only: options.read_only,
                mode,
                new_head: (record.head.is_some() && !had_head).then_some(record),
                _owner: owner,
            })
        }
        Err(error) => {
            let is_undone = match &error {
                // Others may have gone since, and left to us what they shared with us.
                AttachError::Step { left, .. } if left.is_empty() => {
                    let released = release(name, place, dm, || below::all(dm, place.store));
                    released
                        .inspect_err(|error| tracing::warn!(image = %name, error = whole(error), "shared devices stay for the next verb"))
                        .is_ok()
                }
                // What could not be undone is for the next verb.
                AttachError::Step { .. } => false,
                _ => true,
            };
            if is_undone {
                marker.done().map_err(at_work(place))?;
            }
            Err(error)
        }
    }
}

fn make(
    store: &Store,
    place: &Place,
    dm: &Dm,
    read_only: bool,
    choice: Choice,
    record: ImageRecord,
    mount: Option<&Path>,
) -> Result<ImageRecord, AttachError> {
    let devices = place.lock_devices().map_err(at_work(place))?;
    let mut kit = Kit {
        store,
        place,
        dm,
        numbers: Numbers::default(),
    };
    let unmade = |cause: StepError| AttachError::Unmade {
        image: record.name.to_string(),
        cause: Box::new(cause),
    };
    let under = kit.base(&record, choice.mode).map_err(unmade)?;
    let file_system = record.file_system.clone();
    let has_head = record.head.is_some() || !read_only;
    let top = Top {
        base: under.base,
        virtual_size: record.virtual_size,
        head: has_head.then(|| TopHead {
            smallest_size: record.head.map_or(record.virtual_size, |head| head.smallest_size),
            chunk: ChunkSize::HEAD,
        }),
        read_only,
    };
    let steps = plan::attach(&plan::Wanted {
        image: place.image,
        read_only,
        has_head: record.head.is_some(),
        mount: mount.map(|dir| (dir, file_system.as_str())),
        below: under.steps,
    });
    let name = record.name.clone();
    let mut work = Work {
        store,
        place,
        record,
        dm,
        choice,
        sealed: under.sealed,
        top,
        numbers: kit.numbers,
        loops: BTreeMap::new(),
        devices: Some(devices),
    };
    work.attach(&steps).map_err(|failed| AttachError::from_failed(&name, failed))?;
    Ok(work.record)
}

/// What an image stands on, and how it is to be made where it is not there.
struct Under {
    base: Option<Base>,
    sealed: Sealed,
    steps: Vec<Step>,
}

struct Kit<'a> {
    store: &'a Store,
    place: &'a Place,
    dm: &'a Dm,
    numbers: Numbers,
}

impl Kit<'_> {
    fn base(&mut self, record: &ImageRecord, mode: Mode) -> Result<Under, StepError> {
        if record.chain.is_empty() {
            return Ok(Under {
                base: None,
                sealed: Sealed::Nothing,
                steps: Vec::new(),
            });
        }
        let chain = ChainId::of(&record.chain);
        let device = match mode {
            Mode::Stack => DeviceId::Level(chain),
            _ => DeviceId::Lower(chain),
        };
        if let Some(size) = self.there(device)? {
            return Ok(Under {
                base: Some(Base { device, size }),
                sealed: Sealed::Nothing,
                steps: Vec::new(),
            });
        }
        let files = DiskFiles::of(record, self.store, self.store.head_path(&record.name), true);
        let deltas = files.deltas()?;
        let size = deltas.last().map_or(Bytes::ZERO, |delta| delta.virtual_size);
        let base = Some(Base { device, size });
        let (sealed, steps) = match mode {
            Mode::Stack => self.stack(record, &deltas)?,
            _ => {
                let map = ChainMap::build(&deltas, size).map_err(|error| files.chain_error(error))?;
                self.flat(chain, record, &map)?
            }
        };
        Ok(Under { base, sealed, steps })
    }

    /// The size of a shared device that is there, whose number is noted.
    fn there(&mut self, device: DeviceId) -> Result<Option<Bytes>, StepError> {
        match self.dm.info(&device.uuid(self.place.store))? {
            Some(info) if info.has_table => {
                self.numbers.devices.insert(device, info.device);
                Ok(below::size_of(info.device))
            }
            _ => Ok(None),
        }
    }

    /// What a dead verb left of devices that we are about to make, and on which nothing stands.
    fn stale(&self, devices: &[DeviceId]) -> Result<Vec<Step>, StepError> {
        let mut steps = Vec::new();
        for device in devices {
            if self.dm.info(&device.uuid(self.place.store))?.is_some() {
                steps.push(Step::RemoveDevice { device: *device });
            }
        }
        Ok(steps)
    }

    /// Whether a step would make what was found.
    fn is_there(&self, step: &Step) -> bool {
        matches!(step, Step::MakeDevice { device, .. } if self.numbers.devices.contains_key(device))
    }

    fn flat(&mut self, chain: ChainId, record: &ImageRecord, map: &ChainMap) -> Result<(Sealed, Vec<Step>), StepError> {
        let table = table::flat(map);
        let mut is_used = vec![false; record.chain.len()];
        for piece in &table.pieces {
            if let From::Delta { index, .. } = piece.from {
                is_used[index] = true;
            }
        }
        for stretch in table.short.iter().flat_map(|short| &short.concat) {
            is_used[stretch.index] = true;
        }
        let all = record.chain.iter().zip(is_used);
        let mut used: Vec<Digest> = all.filter_map(|(digest, is_used)| is_used.then_some(*digest)).collect();
        used.sort_unstable();
        used.dedup();
        self.find_loops(&used)?;
        let mut stale = vec![DeviceId::Lower(chain), DeviceId::Short(chain), DeviceId::Cow(chain)];
        // A stack on this one delta may have it: then it is used as it is.
        let zero = DeviceId::Zero(chain);
        if self.there(zero)?.is_none() {
            stale.push(zero);
        }
        let mut steps = self.stale(&stale)?;
        let looped = |digest: &Digest| self.numbers.loops.contains_key(&LoopId::Delta(*digest));
        let made = plan::flat(chain, &used, looped, table.short.is_some());
        steps.extend(made.into_iter().filter(|step| !self.is_there(step)));
        let digests = record.chain.clone();
        Ok((Sealed::Flat { chain, digests, table }, steps))
    }

    fn stack(&mut self, record: &ImageRecord, deltas: &[Delta]) -> Result<(Sealed, Vec<Step>), StepError> {
        let level = |(index, delta): (usize, &Delta)| Level {
            chain: ChainId::of(&record.chain[..=index]),
            digest: delta.digest,
            size: delta.virtual_size,
            chunk: delta.chunk_size,
        };
        let levels: Vec<Level> = deltas.iter().enumerate().map(level).collect();
        let mut first = levels.len();
        while first > 0 && self.there(DeviceId::Level(levels[first - 1].chain))?.is_none() {
            first -= 1;
        }
        let is_padded = |index: usize| index > 0 && levels[index].is_padded(&levels[index - 1]);
        let wanted: Vec<plan::Level> = (first..levels.len())
            .map(|index| plan::Level {
                chain: levels[index].chain,
                digest: levels[index].digest,
                is_padded: is_padded(index),
            })
            .collect();
        let digests: Vec<Digest> = wanted.iter().map(|level| level.digest).collect();
        self.find_loops(&digests)?;
        let parts = wanted
            .iter()
            .rev()
            .flat_map(|level| [DeviceId::Level(level.chain), DeviceId::Pad(level.chain)]);
        let mut stale: Vec<DeviceId> = parts.collect();
        if first == 0 {
            // A flat chain of this one delta may have it: then it is used as it is.
            let zero = DeviceId::Zero(levels[0].chain);
            if self.there(zero)?.is_none() {
                stale.push(zero);
            }
        }
        let mut steps = self.stale(&stale)?;
        let looped = |digest: &Digest| self.numbers.loops.contains_key(&LoopId::Delta(*digest));
        let made = plan::stack(&wanted, first == 0, looped);
        steps.extend(made.into_iter().filter(|step| !self.is_there(step)));
        Ok((Sealed::Stack(levels), steps))
    }

    /// The loops that are there already, found by name and by the file beneath: a copy of the store has the same names.
    fn find_loops(&mut self, digests: &[Digest]) -> Result<(), StepError> {
        let named = |digest: &Digest| (LoopId::Delta(*digest).name(self.place.store), *digest);
        let named: BTreeMap<String, Digest> = digests.iter().map(named).collect();
        for found in self.looped(&named.keys().collect())? {
            let Some(digest) = found.name.as_ref().and_then(|name| named.get(name)) else {
                continue;
            };
            let path = self.store.object_paths(digest).delta;
            let file = fs::metadata(&path).map_err(StepError::io("look at", &path))?;
            if (found.file_device, found.file_inode) == (Some(file.dev()), Some(file.ino())) {
                self.numbers.loops.insert(LoopId::Delta(*digest), loops::dev_no(found.number)?);
            }
        }
        Ok(())
    }

    /// The loops of these names, by their hints where each has one, so that it costs the same with a thousand images attached.
    fn looped(&self, names: &BTreeSet<&String>) -> Result<Vec<LoopDevice>, StepError> {
        let hinted = |name: &&&String| loops::get(self.place.hinted(name)?).filter(|found| found.name.as_ref() == Some(name));
        let mut found: Vec<LoopDevice> = match self.place.has_all_hints() {
            true => names.iter().filter_map(|name| hinted(&name)).collect(),
            false => loops::find(|name| names.contains(&name.to_string()))?,
        };
        found.retain(|found| found.read_only && !found.dying);
        Ok(found)
    }
}

/// Takes away what there is of the image, and what it alone stood on.
///
/// `half_done`: a verb died, so that there may be shared devices on which nothing stands yet, or any more.
pub fn take_away(name: &dyn std::fmt::Display, place: &Place, dm: &Dm, seen: &MappedSeen, half_done: bool) -> Result<(), AttachError> {
    if let Some(dir) = &seen.covered {
        return Err(AttachError::covered(name, dir));
    }
    let marker = place.mark(false).map_err(at_work(place))?;
    stop::point("detach.mark");
    let lost = match go(name, place, dm, &plan::take_away(seen)) {
        Ok(lost) => lost,
        Err(error) => {
            // As it was, or nearly: nothing is left half done as long as the device is there, and was whole.
            if !half_done && matches!(dm.info(&DeviceId::Image(place.image).uuid(place.store)), Ok(Some(_))) {
                marker.done().map_err(at_work(place))?;
            }
            return Err(error);
        }
    };
    let rest = || {
        release(name, place, dm, || match seen.base {
            _ if half_done => below::all(dm, place.store),
            Some(base) => below::under(dm, place.store, base),
            None => Ok(Vec::new()),
        })?;
        if seen.image.is_none() {
            // Who removed the device may have died before its node was.
            dm.remove_node(&DeviceId::Image(place.image).name(place.store))?;
        }
        go(name, place, dm, &[Step::RemoveState])?;
        marker.done().map_err(at_work(place))
    };
    match (rest(), lost) {
        (Ok(()), None) => {
            tracing::info!(image = %name, "detached");
            Ok(())
        }
        (rest, Some(cause)) => {
            if let Err(error) = rest {
                tracing::warn!(image = %name, error = whole(&error), "detached, and what it stood on is left to the next verb");
            }
            Err(AttachError::Lost {
                name: name.to_string(),
                cause,
            })
        }
        (Err(cause), None) => Err(AttachError::Detached {
            name: name.to_string(),
            cause: Box::new(cause),
        }),
    }
}

/// Makes the node of an image's device that is there: who made the device may have died before. One look where it is right.
pub fn make_node(place: &Place, dm: &Dm) -> Result<(), AttachError> {
    let device = DeviceId::Image(place.image);
    if let Some(info) = dm.info(&device.uuid(place.store))? {
        dm.make_node(&device.name(place.store), info.device)?;
    }
    Ok(())
}

/// Takes away what is shared and unused.
pub fn release(
    name: &dyn std::fmt::Display,
    place: &Place,
    dm: &Dm,
    nodes: impl FnOnce() -> Result<Vec<Node>, AttachError>,
) -> Result<(), AttachError> {
    let _devices = place.lock_devices().map_err(at_work(place))?;
    go(name, place, dm, &below::release(&nodes()?)).map(drop)
}

/// Does all steps, or those before one that fails. Returns why not all that was written was kept: of that nobody hears again, as the kernel
/// says it once, so that it stops nothing.
fn go(name: &dyn std::fmt::Display, place: &Place, dm: &Dm, steps: &[Step]) -> Result<Option<Box<StepError>>, AttachError> {
    let mut lost = None;
    let loops = steps
        .iter()
        .rposition(|step| !matches!(step, Step::FreeUnused { .. }))
        .map_or(0, |last| last + 1);
    for (done, step) in steps[..loops].iter().enumerate() {
        tracing::debug!(image = %name, %step, "take away");
        match run::take_away(step, place, dm) {
            Err(cause) if matches!(step, Step::Flush { .. }) => lost = Some(Box::new(cause)),
            Err(cause) => return Err(AttachError::from_taking(name, step, cause, &steps[done..]).and_lost(name, lost)),
            Ok(()) => {}
        }
        stop::step("detach", step);
    }
    let mut failed = run::free_together(&steps[loops..], place, dm);
    let left: Vec<Step> = failed.iter().map(|(step, _)| step.clone()).collect();
    let told = failed.pop();
    for (step, cause) in failed {
        tracing::warn!(image = %name, %step, cause = whole(&cause), "could not be done");
    }
    match told {
        Some((step, cause)) => Err(AttachError::from_taking(name, &step, cause, &left)),
        None => Ok(lost),
    }
}

/// What dead verbs left of one image whose marker is there. Whoever calls has the image's run lock. Says whether something was taken away.
pub fn sweep(name: &dyn std::fmt::Display, place: &Place, dm: &Dm) -> Result<bool, AttachError> {
    let seen = MappedSeen::look(dm, place.store, place.image, true, &Around::default())?;
    // Its maker had come to the end, all but the marker's.
    let is_done = seen.attached().is_some()
        && place
            .read_state()
            .is_none_or(|state| state.mount.is_none() || !seen.mounts.is_empty());
    if is_done && !place.is_temporary() {
        make_node(place, dm)?;
        Marker::of(place).done().map_err(at_work(place))?;
        return Ok(false);
    }
    take_away(name, place, dm, &seen, true)?;
    Ok(true)
}

pub fn at_work(place: &Place) -> impl FnOnce(std::io::Error) -> AttachError {
    let path = place.mapped_dir();
    move |source| AttachError::Io {
        doing: "work in",
        path,
        source,
    }
}
