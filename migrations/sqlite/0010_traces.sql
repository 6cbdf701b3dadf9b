-- The context that an event was reported in (W3C Trace Context), which its attempts go on with. NULL: none that others know.
ALTER TABLE events ADD COLUMN traceparent TEXT;
ALTER TABLE events ADD COLUMN tracestate TEXT;
-- NULL: nobody but the service knows its trace.
ALTER TABLE invocations ADD COLUMN trace_id TEXT;
