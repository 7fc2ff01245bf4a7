//! A store that is open for requests: one method per verb, found by one `match`.
//!
//! Refuses to know who asks, and how progress and replies are shown. Invariant: the catalogue is told after the files have changed and before
//! the journal forgets, so that whatever happens in between, its next opener knows what it has to learn.

use super::seeding::Running;
use super::{Backend, ErrorKind, Handler, Progress, Reply, Request, Role, ServiceError, Settings};
use crate::attach;
use crate::catalog::{Catalog, CatalogError};
use crate::ids::{ImageId, ImageName};
use crate::store::{Guard, Store};
use crate::swarm::Swarm;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::sync::{Arc, RwLock};

/// An open store.
pub struct Engine {
    pub(super) store: Store,
    pub(super) settings: Settings,
    /// Kept open by a daemon; a command opens it for each transaction.
    index: Option<Catalog>,
    /// A daemon's, from its start to its stop.
    swarm: RwLock<Option<Arc<Running>>>,
    /// Why this host's daemon has none.
    no_swarm: Option<ServiceError>,
}

/// A swarm to pull with: the daemon's, or one of the command's own.
pub(super) enum Session {
    Shared(Arc<Running>),
    Own(Running),
}

impl Session {
    pub fn swarm(&self) -> &Swarm {
        match self {
            Session::Shared(running) => &running.swarm,
            Session::Own(running) => &running.swarm,
        }
    }

    pub fn end(self) {
        if let Session::Own(running) = self {
            running.leave();
        }
    }
}

/// The stores of this machine.
pub struct Stores;

impl Backend for Stores {
    fn find_run_dir(&self, root: &Path) -> Result<Option<PathBuf>, ServiceError> {
        Ok(Store::find(root)?.map(|store| store.run_dir()))
    }

    fn make_run_dir(&self, root: &Path) -> Result<PathBuf, ServiceError> {
        Ok(Store::make(root)?.run_dir())
    }

    fn open(&self, settings: &Settings, role: Role) -> Result<Arc<dyn Handler>, ServiceError> {
        let engine = Arc::new(Engine::open(settings, role)?);
        if role == Role::Daemon {
            super::space::watch(&engine);
            let seeding = engine.clone();
            // Every published byte is hashed: the socket answers meanwhile.
            std::thread::spawn(move || {
                if let Err(error) = seeding.seed_all() {
                    tracing::error!(cause = %error, "nothing is seeded");
                }
            });
        }
        Ok(engine)
    }
}

impl Engine {
    /// Opens the store; makes one where there is none.
    pub fn open(settings: &Settings, role: Role) -> Result<Engine, ServiceError> {
        let guard = Guard::new(|store, image| attach::is_mapped(store, image).map_err(std::io::Error::other));
        let store = Store::open_guarded(&settings.root, guard)?;
        let index = match role {
            Role::Daemon => Some(Catalog::open(&store)?),
            Role::Command => None,
        };
        let (swarm, no_swarm) = match role {
            Role::Daemon => match Running::of_daemon(&store, settings)? {
                Ok(running) => (Some(Arc::new(running)), None),
                Err(why) => {
                    tracing::warn!(%why, "no swarm: nothing is seeded or pulled until this is mended and the daemon started again; all else works");
                    (None, Some(why))
                }
            },
            Role::Command => (None, None),
        };
        Ok(Engine {
            store,
            settings: settings.clone(),
            index,
            swarm: RwLock::new(swarm),
            no_swarm,
        })
    }

    /// Takes away what dead processes left in the store and in the kernel, before any verb. Costs a look at the store and two listings when nobody
    /// died.
    /// `changed`: the image that the verb is about to lock.
    fn tidy(&self, changed: Option<&ImageName>) -> Result<(), ServiceError> {
        self.store.recover_again(None)?;
        // After the store, whoever settled it: a draft whose transaction is gone is nobody's.
        super::draft::sweep(&self.store)?;
        // A mount of a verb's own went with its device; the directory alone harms nobody.
        if !attach::sweep(&self.store, changed.map(ImageId::of))?.is_empty() {
            super::own_mount::sweep(&self.store);
        }
        Ok(())
    }

    /// The daemon's swarm.
    pub(super) fn swarm(&self) -> Option<Swarm> {
        let running = self.swarm.read().expect("no thread panics while it holds this lock");
        running.as_ref().map(|running| running.swarm.clone())
    }

    /// Why the daemon has no swarm, where it wanted one.
    pub(super) fn why_no_swarm(&self) -> Option<ServiceError> {
        Some(self.no_swarm.clone()?.of("the daemon has no swarm"))
    }

    /// A swarm for one verb. Errors: nodes to ask are given to a daemon at its start.
    pub(super) fn session(&self, bootstrap: &[String]) -> Result<Session, ServiceError> {
        let running = self.swarm.read().expect("no thread panics while it holds this lock").clone();
        match running {
            Some(_) if !bootstrap.is_empty() => {
                let message = "the daemon runs and has its own DHT nodes: start it with --bootstrap, or use --no-daemon";
                Err(ServiceError::new(ErrorKind::Usage, message))
            }
            Some(running) => Ok(Session::Shared(running)),
            None => match self.why_no_swarm() {
                Some(why) => Err(why),
                None => Ok(Session::Own(Running::start(&self.store, &self.settings, bootstrap)?)),
            },
        }
    }

    /// Tells the catalogue. That it cannot be told is no error of the verb: the store is marked, and the next opener indexes again.
    pub(super) fn index(&self, work: impl FnOnce(&Catalog) -> Result<(), CatalogError>) -> Result<(), ServiceError> {
        let told = match &self.index {
            None => Catalog::with(&self.store, work),
            Some(catalog) => self.refreshed(catalog).and_then(work).and_then(|()| catalog.flush()),
        };
        let Err(error) = told else { return Ok(()) };
        match error {
            // Nothing is wrong: others have much to tell it.
            CatalogError::Busy { .. } => tracing::info!(cause = %error, "the catalogue will be made again"),
            _ => tracing::warn!(cause = %error, "the catalogue will be made again"),
        }
        self.store.mark_index_stale()?;
        Ok(())
    }

    /// Asks the catalogue.
    pub(super) fn look_up<T>(&self, work: impl FnOnce(&Catalog) -> Result<T, CatalogError>) -> Result<T, ServiceError> {
        match &self.index {
            None => Ok(Catalog::with(&self.store, work)?),
            Some(catalog) => Ok(self.refreshed(catalog).and_then(work)?),
        }
    }

    /// A command that could not reach the catalogue, as we have it open, has left a marker.
    fn refreshed<'a>(&self, catalog: &'a Catalog) -> Result<&'a Catalog, CatalogError> {
        catalog.refresh(&self.store)?;
        Ok(catalog)
    }
}

impl Handler for Engine {
    fn handle(&self, request: Request, progress: &dyn Progress) -> Result<Reply, ServiceError> {
        self.tidy(request.changes())?;
        Ok(match request {
            Request::Create(ask) => Reply::Create(self.create(ask, progress)?),
            Request::Import(ask) => Reply::Import(self.import(ask, progress)?),
            Request::Clone(ask) => Reply::Clone(self.clone_image(ask)?),
            Request::Mount(ask) => Reply::Mount(self.mount(ask)?),
            Request::Umount(ask) => Reply::Umount(self.umount(ask)?),
            Request::Attach(ask) => Reply::Attach(self.attach(ask)?),
            Request::Detach(ask) => Reply::Detach(self.detach(ask)?),
            Request::Commit(ask) => Reply::Commit(self.commit(ask, progress)?),
            Request::Resize(ask) => Reply::Resize(self.resize(ask, progress)?),
            Request::Flatten(ask) => Reply::Flatten(self.flatten(ask, progress)?),
            Request::Diff(ask) => Reply::Diff(self.diff(ask)?),
            Request::Export(ask) => Reply::Export(self.export(ask, progress)?),
            Request::Info(ask) => Reply::Info(self.info(ask)?),
            Request::List(_) => Reply::List(self.list()?),
            Request::Tree(_) => Reply::Tree(self.tree()?),
            Request::Check(ask) => Reply::Check(self.check(ask, progress)?),
            Request::Rename(ask) => Reply::Rename(self.rename(ask)?),
            Request::Rm(ask) => Reply::Rm(self.rm(ask)?),
            Request::Gc(ask) => Reply::Gc(self.gc(ask)?),
            Request::Publish(ask) => Reply::Publish(self.publish(ask, progress)?),
            Request::Pull(ask) => Reply::Pull(self.pull(ask, progress)?),
            Request::Peers(_) => Reply::Peers(self.peers()?),
        })
    }

    fn stop(&self) {
        let running = self.swarm.write().expect("no thread panics while it holds this lock").take();
        if let Some(running) = running.and_then(Arc::into_inner) {
            running.stop();
        }
    }
}

/// The hidden subcommand of `blockbtd` that serves one attached image.
pub fn fuse_serve(arguments: Vec<OsString>) -> Result<(), ServiceError> {
    let [place] = &arguments[..] else {
        return Err(ServiceError::new(
            ErrorKind::Usage,
            "fuse-serve is started by attach, with one argument",
        ));
    };
    tracing_subscriber::fmt().with_writer(std::io::stderr).with_ansi(false).init();
    attach::server::run(Path::new(place)).map_err(|error| ServiceError::from_error(ErrorKind::Failed, &error))
}
