//! One step's attention, layer by layer: new keys and values appended, blocks closed, rows attended.

use super::*;

/// What stays the same over the layers of one step.
pub(super) struct LayerRun<'a> {
    pub(super) device: &'a dyn Attention,
    geometry: Geometry,
    closing: Option<Closing>,
    pub(super) area: StepArea,
    jobs: Vec<Job>,
    pub(super) pagers: Vec<Pager<'a>>,
    /// Blocks that the step closes, with the segment that they belong to.
    closes: Vec<(usize, u32)>,
}

/// One segment's rows in the step area.
struct Job {
    first_row: u64,
    rows: u32,
    first_position: u32,
    into: Accumulator,
}

impl<'a> LayerRun<'a> {
    pub(super) fn new(
        device: &'a dyn Attention,
        caches: &'a Caches,
        stepper: &Stepper,
        segments: &[Segment<'_>],
        places: &'a [Places],
        area: StepArea,
    ) -> LayerRun<'a> {
        let geometry = stepper.geometry;
        let plan = &stepper.plan;
        let tokens = |segment: &Segment<'_>| segment.positions().end;
        let sizes: Vec<(u32, u32)> = segments
            .iter()
            .map(|segment| (segment.tokens.len() as u32, tokens(segment).div_ceil(SPAN_TOKENS)))
            .collect();
        let mut first_row = 0;
        let jobs = segments.iter().zip(area.accumulators(&geometry, &sizes)).map(|(segment, into)| {
            let rows = segment.tokens.len() as u32;
            let job = Job { first_row, rows, first_position: segment.first_position, into };
            first_row += u64::from(rows);
            job
        });
        let jobs = jobs.collect();
        let slots_each = u64::from(plan.paging_slots / segments.len() as u32) * plan.paging_slot_bytes;
        let closing = caches.closed.as_ref().map(|closed| closed.closing);
        let layers = stepper.model.config.layers;
        let with = Paging { device, geometry, closing, layers, slot_bytes: plan.paging_slot_bytes };
        let share = |cache: &dyn KvCache| cache.stage_capacity() / segments.len() as u32;
        let pagers = segments.iter().zip(places).enumerate().map(|(index, (segment, places))| {
            let slots = area.paging.slice(index as u64 * slots_each, slots_each);
            let mut views = vec![View {
                cache: &*caches.lossless,
                sequence: segment.tables.lossless,
                shape: caches.lossless.shape(),
                places: &places.lossless,
                reads: places.reads_lossless.clone(),
                staged_max: share(&*caches.lossless),
                staged: 0,
            }];
            if let (Some(table), Some(closed)) = (&segment.tables.closed, &caches.closed) {
                views.push(View {
                    cache: &*closed.cache,
                    sequence: table.id,
                    shape: closed.cache.shape(),
                    places: &places.closed,
                    reads: places.reads_closed.clone(),
                    staged_max: share(&*closed.cache),
                    staged: 0,
                });
            }
            Pager::new(with, views, slots, tokens(segment))
        });
        let pagers = pagers.collect();
        let closes = segments.iter().enumerate();
        let closes = closes.flat_map(|(index, segment)| segment.closes().map(move |block| (index, block))).collect();
        LayerRun { device, geometry, closing, area, jobs, pagers, closes }
    }

    /// Writes the new keys and values of `layer` into their blocks and attends; the result is in the area's output.
    pub(super) fn attend(&mut self, layer: u32, buffers: &Buffers) -> Result<(), StepStop> {
        self.device.upload(Stream::Compute, buffers.queries.as_bytes(), self.area.queries)?;
        self.device.upload(Stream::Compute, buffers.keys.as_bytes(), self.area.keys)?;
        self.device.upload(Stream::Compute, buffers.values.as_bytes(), self.area.values)?;
        self.pagers.iter_mut().for_each(|pager| pager.begin_layer(layer));
        let kv_row = 4 * u64::from(self.geometry.kv_heads) * u64::from(self.geometry.head_dim);
        let appends: Vec<Append<'_>> = self
            .jobs
            .iter()
            .zip(&self.pagers)
            .map(|(job, pager)| Append {
                keys: self.area.keys.slice(job.first_row * kv_row, u64::from(job.rows) * kv_row),
                values: self.area.values.slice(job.first_row * kv_row, u64::from(job.rows) * kv_row),
                rows: job.rows,
                first_position: job.first_position,
                sections: pager.sections(),
            })
            .collect();
        self.device.append(Stream::Compute, &self.geometry, &appends)?;
        self.close(layer)?;
        self.attend_resident(layer)?;
        for index in 0..self.jobs.len() {
            if !self.pagers[index].is_resident() {
                let attend = self.attend_job(index);
                self.pagers[index].attend(layer, &attend).map_err(|end| match end {
                    PagingEnd::Failed(error) => StepStop::Failed(error),
                    PagingEnd::Lost { block, reason } => StepStop::Lost(LostBlock { segment: index, block, reason }),
                })?;
            }
        }
        let query_row = self.query_row();
        let finishes: Vec<Finish> = self
            .jobs
            .iter()
            .map(|job| Finish {
                from: job.into,
                rows: job.rows,
                first_position: job.first_position,
                output: self.area.output.slice(job.first_row * query_row, u64::from(job.rows) * query_row),
            })
            .collect();
        Ok(self.device.finish(Stream::Compute, &self.geometry, &finishes)?)
    }

    /// Encodes this layer of the blocks that the step fills and reads closed.
    fn close(&self, layer: u32) -> Result<(), EngineError> {
        let Some(closing) = self.closing.filter(|_| !self.closes.is_empty()) else {
            return Ok(());
        };
        let first = u64::from(layer) * self.closes.len() as u64;
        let encode = |(index, (segment, block)): (usize, &(usize, u32))| {
            let (pager, block) = (&self.pagers[*segment], *block as usize);
            Encode {
                exact: pager.sections()[block].expect("what a step fills is on the device"),
                into: pager.closed()[block].expect("its closed block is open on the device"),
                verdict: self.area.verdicts.slice(4 * (first + index as u64), 4),
            }
        };
        let jobs: Vec<Encode> = self.closes.iter().enumerate().map(encode).collect();
        Ok(self.device.encode(Stream::Compute, &self.geometry, closing.codes(layer), &jobs)?)
    }

    /// Blocks that the step was to close and that do not fit the form.
    pub(super) fn stays_raw(&self, layers: u32) -> Result<Vec<(usize, u32)>, EngineError> {
        let mut verdicts = vec![FITS; layers as usize * self.closes.len()];
        if verdicts.is_empty() {
            return Ok(Vec::new());
        }
        let bytes = self.area.verdicts.slice(0, 4 * verdicts.len() as u64);
        self.device.download(Stream::Compute, bytes, verdicts.as_mut_bytes())?;
        let fits = |index: usize| verdicts[index..].iter().step_by(self.closes.len()).all(|verdict| *verdict == FITS);
        let closes = self.closes.iter().enumerate();
        Ok(closes.filter(|(index, _)| !fits(*index)).map(|(_, block)| *block).collect())
    }

    /// All sequences of which nothing must travel, in one launch.
    fn attend_resident(&self, layer: u32) -> Result<(), EngineError> {
        let resident: Vec<usize> = (0..self.jobs.len()).filter(|index| self.pagers[*index].is_resident()).collect();
        let spans: Vec<Vec<u32>> = resident.iter().map(|index| self.pagers[*index].all_spans()).collect();
        let mut jobs = Vec::with_capacity(resident.len());
        for (index, spans) in resident.iter().zip(&spans) {
            let pager = &self.pagers[*index];
            jobs.push(AttendMixed {
                exact: pager.sections(),
                closed: pager.closed(),
                spans,
                ..self.attend_job(*index)
            });
        }
        let codes = self.closing.map(|closing| closing.codes(layer));
        Ok(paging::attend(self.device, &self.geometry, codes, &jobs)?)
    }

    /// A segment's rows, over no blocks yet.
    fn attend_job(&self, index: usize) -> AttendMixed<'static> {
        let job = &self.jobs[index];
        let query_row = self.query_row();
        AttendMixed {
            queries: self.area.queries.slice(job.first_row * query_row, u64::from(job.rows) * query_row),
            rows: job.rows,
            first_position: job.first_position,
            exact: &[],
            closed: &[],
            window: WINDOW,
            spans: &[],
            into: job.into,
        }
    }

    fn query_row(&self) -> u64 {
        4 * u64::from(self.geometry.heads) * u64::from(self.geometry.head_dim)
    }
}
