//! What a connection has opened: itself, by saying who it is; namespaces and classes; extents.

use super::*;

impl Session {
    pub(super) fn hello(&mut self, hello: &Hello<'_>) -> Result<HelloReply, Refused> {
        if self.staging.is_some() {
            return refused(Status::BadFrame, "a connection introduces itself once");
        }
        if hello.version().is_none() {
            let (min, max) = (hello.version_min, hello.version_max);
            return refused(
                Status::BadVersion,
                format!("this daemon speaks version {VERSION}, the client {min} to {max}"),
            );
        }
        if self.server.is_ending() {
            return refused(Status::Draining, "the daemon is about to end");
        }
        let bytes = self.server.take_staging().or_else(|missing| refused(Status::Full, missing))?;
        self.set_staging(bytes)?;
        self.name = hello.client.as_str().to_owned();
        self.server.introduced(self.id, self.describe());
        tracing::info!(session = self.id, pid = self.peer.pid, client = self.name, "connected");
        Ok(HelloReply {
            version: VERSION,
            reserved: Zero::BYTES,
            default_deadline_ms: self.server.default_deadline_ms(),
            daemon_id: self.server.id,
            session: self.id,
            staging_bytes: bytes,
            reservations_max: RESERVATIONS_MAX as u32,
            lease_ttl_ms: u32::try_from(self.server.lease_ttl().as_millis()).unwrap_or(u32::MAX),
        })
    }

    /// Makes staging memory of `bytes` bytes, which were taken for it, and gives up what there was.
    fn set_staging(&mut self, bytes: u64) -> Result<(), Refused> {
        let made = StagingArea::new(bytes).map_err(|error| sentence(&error));
        let made = made.and_then(|area| match area.memory().duplicate() {
            Ok(descriptor) => Ok((area, descriptor)),
            Err(error) => Err(sentence(&error)),
        });
        let (area, descriptor) = made.or_else(|reason| {
            self.server.give_staging_back(bytes);
            refused(Status::Full, reason)
        })?;
        self.descriptor = Some(descriptor);
        let before = self.staging_bytes();
        self.staging = Some(area);
        self.server.give_staging_back(before);
        Ok(())
    }

    /// More staging memory, for images of `least_bytes` each.
    pub(super) fn stage(&mut self, least_bytes: u64) -> Result<StageReply, Refused> {
        if self.holdings.reservations() > 0 {
            return refused(Status::BadFrame, "replace staging memory in which blocks are being written");
        }
        if self.server.is_ending() {
            return refused(Status::Draining, "the daemon is about to end");
        }
        self.fits_staging(least_bytes)?;
        let bytes = self.server.share_staging(least_bytes).or_else(|missing| refused(Status::Full, missing))?;
        if bytes <= self.staging_bytes() {
            // What there is is as good, and the client has it mapped.
            self.server.give_staging_back(bytes);
            let memory = self.staging.as_ref().expect("it was introduced").memory();
            let descriptor = memory.duplicate().or_else(|error| refused(Status::Internal, sentence(&error)))?;
            self.descriptor = Some(descriptor);
        } else {
            self.set_staging(bytes)?;
        }
        Ok(StageReply { bytes: self.staging_bytes() })
    }

    /// That a client's staging memory can be made to hold an image. Errors: what to do.
    fn fits_staging(&self, slot_bytes: u64) -> Result<(), Refused> {
        let most = self.server.staging_max();
        if slot_bytes <= most {
            return Ok(());
        }
        let text =
            format!("a block has {slot_bytes} bytes and the staging memory {most} at most: raise client_staging");
        refused(Status::TooLarge, text)
    }

    pub(super) fn open(&mut self, open: OpenNamespace) -> Result<OpenNamespaceReply, Refused> {
        if self.opened.len() >= OPENED_MAX {
            return refused(Status::Full, format!("a connection opens at most {OPENED_MAX} namespaces"));
        }
        let slot_bytes = open.shape.slot_bytes();
        self.fits_staging(slot_bytes)?;
        let class = self.server.cache.class_of(open.shape).or_else(|error| refused(Status::Full, sentence(&error)))?;
        let namespace = self.server.knows(open.manifest, open.tenant);
        self.opened.insert((namespace, class), open.shape);
        let extents = self.server.cache.state().class(class).host.layout().extents();
        Ok(OpenNamespaceReply { namespace, class: kvtier_sdk::wire::ClassId(class), extents, slot_bytes })
    }

    pub(super) fn map(&mut self, class: ClassId, extent: u32) -> Result<MapExtentReply, Refused> {
        let class = self.known(class)?;
        let state = self.server.cache.state();
        let host = &state.class(class).host;
        let Some(memory) = host.extents().get(extent as usize) else {
            return refused(Status::UnknownNamespace, format!("the class has {} extents", host.layout().extents()));
        };
        let descriptor = memory.duplicate().or_else(|error| refused(Status::Internal, sentence(&error)))?;
        let words_bytes = host.layout().generation_bytes(extent);
        let reply = MapExtentReply {
            bytes: memory.bytes(),
            words_offset: 0,
            words_bytes,
            slots_offset: words_bytes,
            first_slot: SlotIndex(host.layout().first_slot(extent)),
            slots: memory.slots(),
        };
        drop(state);
        self.descriptor = Some(descriptor);
        Ok(reply)
    }

    /// A class that was opened on this connection.
    pub(super) fn known(&self, class: ClassId) -> Result<ClassId, Refused> {
        match self.opened.keys().any(|(_, opened)| *opened == class) {
            true => Ok(class),
            false => refused(Status::UnknownNamespace, format!("class {class} was not opened on this connection")),
        }
    }

    pub(super) fn class(&self, parts: &KeyParts) -> Result<ClassId, Refused> {
        self.shape(parts).map(|_| parts.class.0)
    }

    /// The shape of the blocks of a namespace and class that were opened on this connection.
    pub(super) fn shape(&self, parts: &KeyParts) -> Result<BlockShape, Refused> {
        let Some(shape) = self.opened.get(&(parts.namespace, parts.class.0)) else {
            return refused(Status::UnknownNamespace, "namespace and class were not opened on this connection");
        };
        match parts.form == shape.form_map() {
            true => Ok(*shape),
            false => refused(Status::BadFrame, "the form is not that of the class"),
        }
    }

    pub(super) fn asked<'a>(&self, parts: KeyParts, accept: AcceptId, links: &'a [Link]) -> Result<Asked<'a>, Refused> {
        let shape = self.shape(&parts)?;
        let accept = match accept {
            AcceptId::Exact => Accept::Exact,
            AcceptId::AtLeast(form) if form == FormMapId::of(shape.form) => Accept::AtLeast(shape.form),
            AcceptId::AtLeast(_) => return refused(Status::BadFrame, "a class has copies of its own form only"),
        };
        Ok(Asked { parts, accept, links, shape })
    }
}
