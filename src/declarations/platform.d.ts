/**
 * What events carry. Interfaces can be added to: platforms may send more than is named here.
 *
 *     declare global { namespace ChatFunctions { interface User { department: string } } }
 */
declare namespace ChatFunctions {
  /** Whatever the app's own code and clients put there. */
  interface Properties {
    [name: string]: any;
  }

  interface User {
    type: 'PERSON' | 'BOT';
    id: number;
    name: string;
    displayName: string;
    displayPictureUrl: string;
    isGuest: boolean;
    presence: { online: boolean; status: string };
    callStatus?: 'AVAILABLE' | 'IN_CALL';
    properties: Properties;
  }

  interface ChannelBase {
    id: number;
    createdTime: string;
    creator?: User;
    lastReceivedMessage?: Message;
    properties: Properties;
  }
  interface DirectChannel extends ChannelBase {
    type: 'DIRECT';
    members: User[];
    name?: undefined;
    displayName?: undefined;
  }
  interface GroupChannel extends ChannelBase {
    type: 'PUBLIC' | 'PRIVATE';
    name: string;
    displayName: string;
    members?: undefined;
  }
  type Channel = DirectChannel | GroupChannel;

  interface MessageBase {
    id: number;
    channelId: number;
    createdTime: string;
    lastEditedTime?: string;
    groupTag?: string;
    nestedLevel: number;
    repliesCount?: number;
    reactions?: Reaction[];
    properties: Properties;
  }
  interface TextMessage extends MessageBase {
    type: 'TEXT';
    user: User;
    body: string;
    links?: MessageLink[];
    mentions?: MessageMention[];
    file?: undefined;
  }
  interface SystemTextMessage extends MessageBase {
    type: 'SYSTEM_TEXT';
    body: string;
    links?: MessageLink[];
    mentions?: MessageMention[];
    user?: undefined;
    file?: undefined;
  }
  interface FileMessage extends MessageBase {
    type: 'FILE';
    user: User;
    file: File;
    body?: undefined;
    links?: undefined;
    mentions?: undefined;
  }
  interface SystemFileMessage extends MessageBase {
    type: 'SYSTEM_FILE';
    file: File;
    body?: undefined;
    links?: undefined;
    mentions?: undefined;
    user?: undefined;
  }
  type Message = TextMessage | SystemTextMessage | FileMessage | SystemFileMessage;

  interface MessageLink {
    source: string;
    startPosition: number;
    endPosition: number;
    preview?: { title: string; url: string; siteName?: string; description?: string; image: { source: string } };
  }
  interface MessageMention {
    type: 'CHANNEL' | 'USER';
    tag: string;
    startPosition: number;
    endPosition: number;
    channel?: Channel;
    user?: User;
  }
  interface File {
    type: 'HOSTED' | 'EXTERNAL';
    url: string;
    name: string;
    contentType: string;
    size: number;
  }

  interface Emoji {
    character: string;
    description: string;
    aliases: string[];
    tags: string[];
  }
  interface Reaction {
    /** ChatKitty sends an {@link Emoji}; other platforms the character alone. */
    emoji: any;
    count?: number;
    users?: User[];
  }
  interface Receipt {
    createdTime?: string;
    readTime?: string;
    user?: User;
  }
  interface Notification {
    id: number;
    title: string;
    body: string;
    channel?: Channel;
    createdTime: string;
    readTime?: string;
    muted: boolean;
    /** Its `type` says which of the others there are. */
    data: { type: string; [name: string]: any };
  }
  /** What a client, or a system, triggered in a channel. */
  interface CustomEvent {
    type: string;
    properties: Properties;
    user?: User;
  }

  interface Log {
    debug(...values: unknown[]): void;
    info(...values: unknown[]): void;
    warn(...values: unknown[]): void;
    error(...values: unknown[]): void;
  }

  /** W3C Trace Context: https://www.w3.org/TR/trace-context/ */
  interface Trace {
    /** 32 hexadecimal digits; what logs of other services know the trace by. */
    readonly traceId: string;
    /** 16 hexadecimal digits: of the span that this invocation runs in. */
    readonly spanId: string;
    /** Whether spans of the trace are recorded. */
    readonly sampled: boolean;
    /** For the header of that name. */
    readonly traceparent: string;
    /** For the header of that name, if the caller sent one. */
    readonly tracestate?: string;
  }

  /** For clients of older guides: what a method is given is not checked, and older methods' names are taken. */
  type Older<Client> = {
    [Method in keyof Client]: Client[Method] extends (...values: any[]) => infer Result
      ? (...values: any[]) => Result
      : Client[Method];
  } & { [method: string]: any };

  /** The event of a trigger type: `ChatFunctions.Event<'UserSentMessage'>`. */
  type Event<Trigger extends keyof Events> = Events[Trigger];
  /** A handler: `export const handleEvent: ChatFunctions.Handler<'UserSentMessage'> = async (event, context) => { … }`. */
  type Handler<Trigger extends keyof Events> = (event: Events[Trigger], context: Context) => unknown;
  /** A handler of a function that is published with `batch`: it gets an array, also of one event. */
  type BatchHandler<Trigger extends keyof Events> = (events: Events[Trigger][], context: Context) => unknown;
}
