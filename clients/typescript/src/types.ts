// What comes back. Made of the types of kvrt.client: python -m tests.client.typescript

/** What has become of a model; in a server of one, the value alone. */
export interface ModelStatus {
  readonly value: string;
  readonly bytes?: number;
  readonly held_bytes?: number;
  readonly running?: number;
  readonly waiting?: number;
  readonly requests_per_second?: number;
  readonly load_seconds?: number | null;
  readonly expires_at?: number | null;
  readonly device?: string | null;
  readonly error?: string;
}

/** A model, or an adapter, that requests may name. */
export interface Model {
  readonly id: string;
  readonly object: string;
  readonly created: number;
  readonly owned_by: string;
  readonly type: string;
  readonly display_name: string;
  readonly lifecycle: string;
  readonly created_at: string;
  readonly parent: string | null;
  readonly status: ModelStatus;
  readonly max_model_len?: number;
}

/** Something is to become of a model. */
export interface Ordered {
  readonly success: boolean;
  readonly model: Model;
}

/** Where a model stands from now on. */
export interface ModelEvent {
  readonly model: string;
  readonly status: ModelStatus;
}

/** All of them. */
export interface Models {
  readonly object: string;
  readonly data: readonly Model[];
  readonly has_more: boolean;
  readonly first_id: string;
  readonly last_id: string;
}

/** A file of requests, or of answers. */
export interface File {
  readonly id: string;
  readonly object: string;
  readonly bytes: number;
  readonly created_at: number;
  readonly expires_at: number | null;
  readonly filename: string;
  readonly purpose: string;
  readonly status: string;
  readonly status_details: string | null;
}

/** Lines. */
export interface Counts {
  readonly total: number;
  readonly completed: number;
  readonly failed: number;
}

/** Of tokens of prompts. */
export interface InputDetails {
  readonly cached_tokens: number;
}

/** Of tokens of answers. */
export interface OutputDetails {
  readonly reasoning_tokens: number;
}

/** Tokens. */
export interface BatchUsage {
  readonly input_tokens: number;
  readonly input_tokens_details: InputDetails;
  readonly output_tokens: number;
  readonly output_tokens_details: OutputDetails;
  readonly total_tokens: number;
}

/** Why a batch was not begun. */
export interface Problem {
  readonly code: string;
  readonly message: string;
  readonly line: number | null;
  readonly param: string | null;
}

/** All of them. */
export interface Problems {
  readonly object: string;
  readonly data: readonly Problem[];
}

/** How a batch goes on. */
export interface Progress {
  readonly seconds: number;
  readonly lines: number;
  readonly lines_per_s: number;
  readonly tokens_per_s: number;
  readonly cached: number;
  readonly seconds_left: number | null;
  readonly energy_j: number | null;
  readonly energy_why: string | null;
  readonly cost: number | null;
}

/** A batch as it stands. */
export interface Batch {
  readonly id: string;
  readonly object: string;
  readonly endpoint: string;
  readonly errors: Problems | null;
  readonly input_file_id: string;
  readonly completion_window: string;
  readonly status: "validating" | "in_progress" | "finalizing" | "cancelling" | "completed" | "failed" | "expired" | "cancelled";
  readonly output_file_id: string | null;
  readonly error_file_id: string | null;
  readonly created_at: number;
  readonly expires_at: number | null;
  readonly in_progress_at: number | null;
  readonly finalizing_at: number | null;
  readonly completed_at: number | null;
  readonly failed_at: number | null;
  readonly expired_at: number | null;
  readonly cancelling_at: number | null;
  readonly cancelled_at: number | null;
  readonly request_counts: Counts;
  readonly metadata: Readonly<Record<string, string>> | null;
  readonly priority: number;
  readonly usage: BatchUsage;
  readonly progress: Progress | null;
}

/** Some batches, the newest first. */
export interface BatchPage {
  readonly object: string;
  readonly data: readonly Batch[];
  readonly first_id: string | null;
  readonly last_id: string | null;
  readonly has_more: boolean;
}

/** A line that has no good answer. */
export interface Failure {
  readonly line: number;
  readonly custom_id: string | null;
  readonly status_code: number | null;
  readonly code: string | null;
  readonly message: string;
  readonly param: string | null;
}

/** Some of them, in the order of the input. */
export interface FailurePage {
  readonly object: string;
  readonly data: readonly Failure[];
  readonly has_more: boolean;
}

/** Something is gone. */
export interface Deleted {
  readonly id: string;
  readonly object: string;
  readonly deleted: boolean;
}

/** Of a line. */
export interface Response {
  readonly status_code: number;
  readonly request_id: string;
  readonly body: Readonly<Record<string, unknown>>;
}

/** Why a line was not asked. */
export interface LineError {
  readonly code: string;
  readonly message: string;
}

/** What came of a line. */
export interface Answer {
  readonly id: string;
  readonly custom_id: string;
  readonly response: Response | null;
  readonly error: LineError | null;
}

/** What a key and a model came to in a day of UTC. */
export interface UsageDay {
  readonly day: string;
  readonly workspace: string;
  readonly key: string;
  readonly model: string;
  readonly requests: number;
  readonly prompt_tokens: number;
  readonly cached_tokens: number;
  readonly generated_tokens: number;
}

/** What a key, or its workspace, may take, and has. */
export interface Quota {
  readonly of: string;
  readonly name: string;
  readonly period: string;
  readonly measure: string;
  readonly limit: number;
  readonly taken: number;
}

/** Who has taken what. */
export interface Usage {
  readonly object: string;
  readonly data: readonly UsageDay[];
  readonly has_more: boolean;
  readonly kept: boolean;
  readonly quotas: readonly Quota[];
}

/** The process. */
export interface ServerStanding {
  readonly version: string;
  readonly state: string;
  readonly seconds: number;
  readonly places: number;
  readonly taken: number;
  readonly running: number;
  readonly waiting: number;
  readonly tasks: number;
}

/** The model. */
export interface ModelStanding {
  readonly names: readonly string[];
  readonly architecture: string;
  readonly dtype: string;
  readonly weight_bytes: number;
  readonly context: number;
  readonly layers: number;
  readonly device: string;
  readonly backend: string;
  readonly chats: boolean;
}

/** A request that goes on, or has ended. */
export interface Flight {
  readonly id: string;
  readonly route: string;
  readonly key: string;
  readonly state: string;
  readonly seconds: number;
  readonly prompt_tokens: number;
  readonly generated_tokens: number;
  readonly first_token_seconds: number | null;
  readonly tokens_per_second: number | null;
}

/** A request that waits. */
export interface Waiter {
  readonly id: string;
  readonly key: string;
  readonly batch: boolean;
  readonly priority: number;
  readonly prompt_tokens: number;
  readonly generated_tokens: number;
  readonly seconds: number;
  readonly preemptions: number;
  readonly why: string;
}

/** Lines of batches: that are asked, that may be, and whether clients have the KV memory. */
export interface LinesStanding {
  readonly asked: number;
  readonly places: number;
  readonly crowded: boolean;
}

/** Neighbouring chunks: see `kvrt.kv.picture.Cell`. */
export interface CellStanding {
  readonly mapped: number;
  readonly used: number;
  readonly cached: number;
  readonly open: number;
}

/** Pages that the requests of a workspace hold: in all, and by cell. */
export interface OwnerStanding {
  readonly owner: string;
  readonly used: number;
  readonly cells: readonly number[];
}

/** A group of layers: see `kvrt.kv.picture.GroupPicture`. */
export interface GroupStanding {
  readonly window: number;
  readonly page_bytes: number;
  readonly used: number;
  readonly cached: number;
  readonly mapped_chunks: number;
  readonly cell_chunks: number;
  readonly cells: readonly CellStanding[];
  readonly owners: readonly OwnerStanding[];
}

/** Pages outside the device. */
export interface TierStanding {
  readonly name: string;
  readonly pages: number;
  readonly used_bytes: number;
  readonly limit_bytes: number | null;
}

/** The KV memory: see `kvrt.kv.stats.CacheStats`. */
export interface MemoryStanding {
  readonly page_bytes: number;
  readonly used_pages: number;
  readonly cached_pages: number;
  readonly cached_bytes: number;
  readonly free_pages: number;
  readonly retired_pages: number;
  readonly mapped_bytes: number;
  readonly pooled_bytes: number;
  readonly spare_bytes: number;
  readonly limit_bytes: number;
  readonly asked_bytes: number;
  readonly peak_mapped_bytes: number;
  readonly maps: number;
  readonly unmaps: number;
  readonly copies: number;
  readonly usage: number;
  readonly groups: readonly GroupStanding[];
  readonly tiers: readonly TierStanding[];
}

/** What has become of a model, and of which. */
export interface NamedStatus {
  readonly value: string;
  readonly bytes?: number;
  readonly held_bytes?: number;
  readonly running?: number;
  readonly waiting?: number;
  readonly requests_per_second?: number;
  readonly load_seconds?: number | null;
  readonly expires_at?: number | null;
  readonly device?: string | null;
  readonly error?: string;
  readonly name: string;
}

/** All of it. A key of role user sees its own requests. */
export interface Status {
  readonly server: ServerStanding;
  readonly model: ModelStanding | null;
  readonly requests: readonly Flight[];
  readonly recent: readonly Flight[];
  readonly queue: readonly Waiter[];
  readonly batches: LinesStanding | null;
  readonly memory: MemoryStanding | null;
  readonly models?: readonly NamedStatus[];
}
