// What the modules hand to each other.
export {};

declare global {
  /** n keypoints (x, y) in [-1,1], one after the other, and their n Jacobians, row by row. */
  interface Pose {
    value: Float32Array;
    jacobian: Float32Array;
  }

  /** The poses of a head that turns about one axis, by angles in degrees, ascending. */
  interface Recording {
    angles: number[];
    value: number[][];
    jacobian: number[][];
  }

  type Axis = "yaw" | "pitch" | "roll";

  /** What model.json says (mrfomm/commands/web_model.py), and the number of threads that compute. */
  interface Model {
    size: number; // of pictures, pixels
    max_references: number;
    fusion: string[]; // modes, the model's own first
    graphs: Record<string, { inputs: string[]; outputs: string[] }>;
    turn: Record<Axis, Recording>;
    threads: number;
  }

  /** A picture in the model's size; each of `count` references' share, at the size of the features. */
  interface Drawn {
    image: ImageData;
    mask: Float32Array;
    count: number;
  }

  /** What worker.js does. */
  interface Tasks {
    open(folder: string): Promise<Model>;
    poses(pictures: ImageData[]): Promise<Pose[]>;
    encode(pictures: ImageData[]): Promise<Pose[]>;
    draw(frame: { pose: Pose; fusion: number[] }): Promise<Drawn>;
  }

  type Ask = <T extends keyof Tasks>(task: T, argument: Parameters<Tasks[T]>[0]) => ReturnType<Tasks[T]>;

  /** In pixels. */
  interface Square {
    x: number;
    y: number;
    side: number;
  }

  interface Picture {
    name: string;
    image: ImageBitmap | HTMLVideoElement;
    width: number;
    height: number;
    box: Square; // what is taken of it
  }
}
